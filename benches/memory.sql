-- What the processes hold: kB of the session's and the worker's own memory (resident and not shared, /proc/self/statm) after
-- 1,000 and after 100,000 jobs.
\ir prelude.psql

call bench.workers_stay(true);

create function bench.private_kb(statm text) returns int language sql as $$
    select ((regexp_split_to_array(statm, ' '))[2]::int - (regexp_split_to_array(statm, ' '))[3]::int) * 4
$$;

create function bench.held() returns table (pid int, "session kB" int, "worker kB" int) language sql as $$
    select job.pid, bench.private_kb(pg_read_file('/proc/self/statm')), bench.private_kb(job.statm)
    from pg_background_result(pg_background_launch('select pg_backend_pid(), pg_read_file(''/proc/self/statm'')')) as job (pid int, statm text)
$$;

\echo 'own memory after 1,000 jobs and after 100,000 more'
select bench.block(bench.loop(bench.job($$'select 1'$$), 1000))
\gexec
select * from bench.held();
select bench.block(bench.loop(bench.job($$'select 1'$$), 100000))
\gexec
select * from bench.held();
