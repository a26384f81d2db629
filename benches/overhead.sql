-- What a job costs: `select 1`, 1,000 times, in a worker that stays, and each time in a new one; beside dblink with one
-- connection, with a new connection each time, and no other process at all.
\ir prelude.psql

insert into bench.way (name, statement, prepare) values
('dblink, new connection', bench.block(bench.loop($way$
    select * into result from dblink(current_setting('bench.server'), 'select 1') as (result int);
$way$)), null),
('pg_background_mgr, new worker', bench.block(bench.loop(bench.job($$'select 1'$$))), 'call bench.workers_stay(false)'),
('dblink, open connection', bench.block(bench.connected(bench.loop($way$
    select * into result from dblink('bench', 'select 1') as (result int);
$way$))), null),
('pg_background_mgr, worker that stays', bench.block(bench.loop(bench.job($$'select 1'$$))), 'call bench.workers_stay(true)'),
('plain EXECUTE', bench.block(bench.loop($way$
    execute 'select 1' into result;
$way$)), null);

select bench.peer('pg_background', bench.block(bench.loop(bench.peer_job($$'select 1'$$))))
\gset ignored_

call bench.run(:rounds);

\echo '`select 1`, 1,000 times;' :rounds 'rounds, ratio to dblink with a new connection'
select * from bench.report('select 1, 1,000 times', 'dblink, new connection');
\echo 'The same, ratio to dblink with an open connection'
select * from bench.report('select 1, 1,000 times', 'dblink, open connection');
