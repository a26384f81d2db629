-- What rows cost: 1,000,000 of (int, text, timestamptz), counted by the caller; beside dblink with one connection, and the
-- same query in the caller's own process.
\ir prelude.psql

-- All rows of a source, which must be so many.
create function bench.count(source text, expected int) returns text language sql as $$
    select format('select count(*) into result from %s as (i int, t text, z timestamptz); assert result = %s;', source, expected)
$$;

-- The same of pg_background, whatever its form.
create function bench.peer_rows(query text, expected int) returns text language sql as $$
    select replace(replace(bench.peer_job(query, 'int, t text, z timestamptz'), 'job.result into', 'count(*) into'), '* into', 'count(*) into')
        || format(' assert result = %s;', expected)
$$;

-- The ways to count what a query gives.
create function bench.ways(query text, expected int) returns void language sql as $fn$
    truncate bench.way, bench.sample;
    select set_config('bench.query', query, false);
    insert into bench.way (name, statement) values
    ('dblink, open connection', bench.block(bench.connected(
        bench.count($$dblink('bench', current_setting('bench.query'))$$, expected)
    ))),
    ('pg_background_mgr', bench.block(
        bench.count($$pg_background_result(pg_background_launch(current_setting('bench.query')))$$, expected)
    )),
    ('the query by itself', bench.block(format($$
        execute format('with rows as materialized (%%s) select count(*) from rows', current_setting('bench.query')) into result;
        assert result = %s;
    $$, expected)));
    select bench.peer('pg_background', bench.block(bench.peer_rows($$current_setting('bench.query')$$, expected)))
$fn$;

select bench.ways($$
    select i, 'row number ' || i, timestamptz '2000-01-01 00:00:00+00' + i * interval '1 second'
    from generate_series(1, 1000000) as i
$$, 1000000)
\gset ignored_

call bench.run(:rounds);

\echo '1,000,000 rows (int, text, timestamptz) into count(*);' :rounds 'rounds, ratio to dblink'
select * from bench.report('1,000,000 rows into count(*)', 'dblink, open connection');

-- Few and large: 10,000 rows of 10 kB.
select bench.ways($$select i, repeat(md5(i::text), 320), now() from generate_series(1, 10000) as i$$, 10000)
\gset ignored_

call bench.run(:rounds);

\echo '10,000 rows of 10 kB into count(*);' :rounds 'rounds, ratio to dblink'
select * from bench.report('10,000 rows of 10 kB into count(*)', 'dblink, open connection');

-- The same rows as the first ones from a table, where a query by itself is a scan, with and without keeping its rows.
create table bench.big as
    select i, 'row number ' || i as t, timestamptz '2000-01-01 00:00:00+00' + i * interval '1 second' as z
    from generate_series(1, 1000000) as i;
vacuum analyze bench.big;
select bench.ways('select i, t, z from bench.big', 1000000)
\gset ignored_
insert into bench.way (name, statement)
values ('a scan that keeps nothing', bench.block('select count(*) into result from bench.big; assert result = 1000000;'));

call bench.run(:rounds);

\echo '1,000,000 rows of a table into count(*);' :rounds 'rounds, ratio to dblink'
select * from bench.report('1,000,000 rows of a table into count(*)', 'dblink, open connection');
