-- What a process costs: `select 1`, 1,000 times, each time in a new background worker; beside dblink with a new connection
-- each time, dblink with one connection, and no other process at all.
\ir prelude.psql

insert into bench.way (name, statement) values
('dblink, new connection', $way$
    do $$
    declare
        result int;
    begin
        for i in 1 .. 1000 loop
            select * into result from dblink(current_setting('bench.server'), 'select 1') as (result int);
        end loop;
    end
    $$
$way$),
('pg_background_mgr', $way$
    do $$
    declare
        result int;
    begin
        for i in 1 .. 1000 loop
            select * into result from pg_background_result(pg_background_launch('select 1')) as (result int);
        end loop;
    end
    $$
$way$),
('dblink, open connection', $way$
    do $$
    declare
        result int;
    begin
        perform dblink_connect('bench', current_setting('bench.server'));
        for i in 1 .. 1000 loop
            select * into result from dblink('bench', 'select 1') as (result int);
        end loop;
        perform dblink_disconnect('bench');
    end
    $$
$way$),
('plain EXECUTE', $way$
    do $$
    declare
        result int;
    begin
        for i in 1 .. 1000 loop
            execute 'select 1' into result;
        end loop;
    end
    $$
$way$);

call bench.run(:rounds);

\echo '`select 1`, 1,000 times;' :rounds 'rounds, ratio to dblink with a new connection'
select * from bench.report('dblink, new connection');
