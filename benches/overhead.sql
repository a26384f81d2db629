-- What a job costs: `select 1`, 1,000 times, in a worker that stays, and each time in a new one; beside dblink with one
-- connection, with a new connection each time, and no other process at all.
\ir prelude.psql

insert into bench.way (name, statement, prepare) values
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
$way$, null),
('pg_background_mgr, new worker', $way$
    do $$
    declare
        result int;
    begin
        for i in 1 .. 1000 loop
            select * into result from pg_background_result(pg_background_launch('select 1')) as (result int);
        end loop;
    end
    $$
$way$, 'call bench.workers_stay(false)'),
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
$way$, null),
('pg_background_mgr, worker that stays', $way$
    do $$
    declare
        result int;
    begin
        for i in 1 .. 1000 loop
            select * into result from pg_background_result(pg_background_launch('select 1')) as (result int);
        end loop;
    end
    $$
$way$, 'call bench.workers_stay(true)'),
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
$way$, null);

call bench.run(:rounds);

\echo '`select 1`, 1,000 times;' :rounds 'rounds, ratio to dblink with a new connection'
select * from bench.report('dblink, new connection');
\echo 'The same, ratio to dblink with an open connection'
select * from bench.report('dblink, open connection');
