-- What rows cost: 1,000,000 of (int, text, timestamptz), counted by the caller; beside dblink with one connection, and the
-- same query in the caller's own process.
\ir prelude.psql

select set_config('bench.query', $$
    select i, 'row number ' || i, timestamptz '2000-01-01 00:00:00+00' + i * interval '1 second'
    from generate_series(1, 1000000) as i
$$, false)
\gset ignored_

insert into bench.way (name, statement) values
('dblink, open connection', $way$
    do $$
    declare
        result int;
    begin
        perform dblink_connect('bench', current_setting('bench.server'));
        select count(*) into result from dblink('bench', current_setting('bench.query')) as (i int, t text, z timestamptz);
        assert result = 1000000;
        perform dblink_disconnect('bench');
    end
    $$
$way$),
('pg_background_mgr', $way$
    do $$
    declare
        result int;
    begin
        select count(*) into result
        from pg_background_result(pg_background_launch(current_setting('bench.query'))) as (i int, t text, z timestamptz);
        assert result = 1000000;
    end
    $$
$way$),
('the query by itself', $way$
    do $$
    declare
        result int;
    begin
        execute format('with rows as materialized (%s) select count(*) from rows', current_setting('bench.query')) into result;
        assert result = 1000000;
    end
    $$
$way$);

call bench.run(:rounds);

\echo '1,000,000 rows (int, text, timestamptz) into count(*);' :rounds 'rounds, ratio to dblink'
select * from bench.report('dblink, open connection');

-- Few and large: 10,000 rows of 10 kB.
truncate bench.way, bench.sample;
select set_config('bench.query', $$select i, repeat(md5(i::text), 320), now() from generate_series(1, 10000) as i$$, false)
\gset ignored_

insert into bench.way (name, statement) values
('dblink, open connection', $way$
    do $$
    declare
        result int;
    begin
        perform dblink_connect('bench', current_setting('bench.server'));
        select count(*) into result from dblink('bench', current_setting('bench.query')) as (i int, t text, z timestamptz);
        assert result = 10000;
        perform dblink_disconnect('bench');
    end
    $$
$way$),
('pg_background_mgr', $way$
    do $$
    declare
        result int;
    begin
        select count(*) into result
        from pg_background_result(pg_background_launch(current_setting('bench.query'))) as (i int, t text, z timestamptz);
        assert result = 10000;
    end
    $$
$way$),
('the query by itself', $way$
    do $$
    declare
        result int;
    begin
        execute format('with rows as materialized (%s) select count(*) from rows', current_setting('bench.query')) into result;
        assert result = 10000;
    end
    $$
$way$);

call bench.run(:rounds);

\echo '10,000 rows of 10 kB into count(*);' :rounds 'rounds, ratio to dblink'
select * from bench.report('dblink, open connection');
