-- What the processes hold: kB of the session's and the worker's own memory (resident and not shared, /proc/self/statm) after
-- 1,000 and after 100,000 jobs.
\ir prelude.psql

call bench.workers_stay(true);

create function bench.private_kb(statm text) returns int language sql as $$
    select ((regexp_split_to_array(statm, ' '))[2]::int - (regexp_split_to_array(statm, ' '))[3]::int) * 4
$$;

create procedure bench.jobs(count int) language plpgsql as $$
declare
    result int;
begin
    for i in 1 .. count loop
        select * into result from pg_background_result(pg_background_launch('select 1')) as (result int);
    end loop;
end
$$;

create function bench.held() returns table (pid int, "session kB" int, "worker kB" int) language sql as $$
    select job.pid, bench.private_kb(pg_read_file('/proc/self/statm')), bench.private_kb(job.statm)
    from pg_background_result(pg_background_launch('select pg_backend_pid(), pg_read_file(''/proc/self/statm'')')) as job (pid int, statm text)
$$;

\echo 'own memory after 1,000 jobs and after 100,000 more'
call bench.jobs(1000);
select * from bench.held();
call bench.jobs(100000);
select * from bench.held();
