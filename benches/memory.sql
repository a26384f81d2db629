-- What the processes hold: kB of the session's and the worker's own memory (resident and not shared, /proc/self/statm) after
-- 1,000 and after 100,000 jobs; and what they cost while they wait.
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

-- What waiting costs: clock ticks (a hundred a second) that an idle worker takes in five seconds, and a session that follows a batch in
-- which nothing happens.
create function bench.ticks(pid int) returns int language sql as $$
    select part[12]::int + part[13]::int
    from regexp_split_to_array(split_part(pg_read_file(format('/proc/%s/stat', pid)), ') ', 2), ' ') as part
$$;

select dblink_connect('follower', current_setting('bench.server')),
       (select pid from dblink('follower', 'select pg_backend_pid()') as session (pid int)) as follower,
       (select uuid_parent from pg_background_launch_num(array['select pg_sleep(9)'])) as batch
\gset
-- One that stays, beside the one that runs the batch.
select job.pid as worker from pg_background_result(pg_background_launch('select pg_backend_pid(), pg_sleep(1)')) as job (pid int, slept text)
\gset
select dblink_send_query('follower', format('select count(*) from pg_background_monitor(%L::uuid)', :'batch')), pg_sleep(1)
\gset ignored_
select bench.ticks(:worker) as worker_before, bench.ticks(:follower) as follower_before
\gset
select pg_sleep(5)
\gset ignored_
\echo 'clock ticks in five seconds of waiting'
select bench.ticks(:worker) - :worker_before as "idle worker", bench.ticks(:follower) - :follower_before as "follower of a batch";
select dblink_disconnect('follower')
\gset ignored_
