-- What the manager costs. First 10,000 small jobs, one INSERT each, through launch_num, with their rows in the log; beside a loop
-- of launch and result, and beside pgbench with as many clients as there are workers. Then a queue of up to 1,000,000 jobs
-- behind one that does not end.

\if :{?rounds}
\else
\set rounds 3
\endif
\ir prelude.psql

create table bench.log (id int generated always as identity, query text, ended_at timestamptz);
create table bench.output (line text);

-- As many clients as launch_num has workers; 10,000 transactions, or a few more where they cannot be shared out evenly.
-- No apostrophes in the script.
create procedure bench.pgbench(script text) language plpgsql as $$
declare
    clients int := current_setting('max_worker_processes')::int - current_setting('pg_background_mgr.reserved_workers')::int;
begin
    execute format('copy bench.output from program %L', format(
        'printf %%s ''%s'' | %s/pgbench --no-vacuum --file=/dev/stdin --client=%s --jobs=%s --transactions=%s --host=%s --port=%s --username=%s %s 2>&1',
        script, (select setting from pg_config where name = 'BINDIR'), clients, least(clients, 2),
        (10000 + clients - 1) / clients, current_setting('bench.host'), current_setting('port'), current_user, current_database()
    ));
end
$$;
select set_config('bench.host', :'HOST', false)
\gset ignored_
-- Workers of launch_num that are still there would keep places from the loop of the next round.
alter system set pg_background_mgr.worker_idle_timeout = '100ms';
select pg_reload_conf()
\gset ignored_

insert into bench.way (name, statement, prepare) values
('launch and result in a loop, new workers', bench.block(bench.loop(bench.job(:'insert', 'text'), 10000), 'text'),
 'call bench.workers_stay(false)'),
('launch and result in a loop', bench.block(bench.loop(bench.job(:'insert', 'text'), 10000), 'text'),
 'call bench.workers_stay(true)'),
('launch_num, sync', bench.block(format($way$
    select count(*) into result
    from pg_background_launch_num(array(select %s from generate_series(1, 10000) as i), p_exec_type => 'sync')
    where status = 'succeeded';
    assert result = 10000;
$way$, :'insert')), null),
('pgbench', $way$
    call bench.pgbench('insert into bench.target values (1);')
$way$, null),
('pgbench, with a row of a log', $way$
    call bench.pgbench('insert into bench.target values (1)\; insert into bench.log (query, ended_at) values ($$insert into bench.target values (1)$$, clock_timestamp());')
$way$, null);

select bench.peer('pg_background', bench.block(bench.loop(bench.peer_job(:'insert', 'text'), 10000), 'text'))
\gset ignored_

call bench.run(:rounds);

\echo '10,000 INSERTs, each a job or a transaction of its own;' :rounds 'rounds, ratio of times to a loop of launch and result in new workers'
select *, round(10000 / "median ms" * 1000) as "a second"
from bench.report('10,000 INSERTs, each a job', 'launch and result in a loop, new workers');
\echo 'The same, ratio to pgbench with a row of a log'
select * from bench.report('10,000 INSERTs, each a job', 'pgbench, with a row of a log');
select count(*) as "complaints of pgbench" from bench.output where line ~* 'error|aborted|fatal';

-- The queue. One worker, and it waits for a lock that this session has.
select pg_background_prune('0')
\gset ignored_
alter system set pg_background_mgr.max_workers = 1;
alter system set pg_background_mgr.queue_memory_limit = '4GB';
select pg_reload_conf()
\gset ignored_

create table bench.queue (jobs int, round int, step text, number int generated always as identity, value float8);
create table bench.yardstick (id uuid, status text, query text);

-- Shared memory beside the server's own that this process has mapped.
create function bench.mapped() returns float8 language sql as $$
    select coalesce(sum((('x' || lpad(part[2], 16, '0'))::bit(64)::int8 - ('x' || lpad(part[1], 16, '0'))::bit(64)::int8)::float8), 0)
    from regexp_matches(pg_read_file('/proc/self/maps', 0, 10000000), '^([0-9a-f]+)-([0-9a-f]+) [^\n]*/dev/shm/PostgreSQL', 'gn') as part
$$;

create procedure bench.queue(jobs int, round int) language plpgsql as $$
declare
    queries text[] := array(select format('insert into bench.target values (%s)', i) from generate_series(1, jobs) as i);
    mapped float8;
    began timestamptz;
    batch uuid;
    cut uuid;
    found int;
    steps text[] := '{}';
    amounts float8[] := '{}';
begin
    perform pg_advisory_lock(1);
    perform pg_background_launch_num(array['select pg_advisory_xact_lock_shared(1)']);
    while not exists (select from pg_background_jobs where status = 'running') loop
        commit;
        perform pg_sleep(0.01);
    end loop;
    commit;

    began := clock_timestamp();
    insert into bench.yardstick select md5(i::text)::uuid, 'queued', query from unnest(queries) with ordinality as q (query, i);
    steps := steps || text 'INSERT into a table: ms';
    amounts := amounts || extract(epoch from clock_timestamp() - began) * 1000;
    commit;

    mapped := bench.mapped();
    began := clock_timestamp();
    select count(*), (array_agg(uuid_parent))[1] into found, batch from pg_background_launch_num(queries);
    steps := steps || text 'launch_num: ms';
    amounts := amounts || extract(epoch from clock_timestamp() - began) * 1000;
    assert found = jobs;
    -- A few jobs fit in what is mapped already.
    if jobs >= 100000 then
        steps := steps || text 'shared memory a job, over its text: bytes';
        amounts := amounts || (bench.mapped() - mapped) / jobs - (select avg(octet_length(query)) from unnest(queries) as query);
    end if;
    commit;

    if jobs = 10000 then
        began := clock_timestamp();
        select count(*), (array_agg(uuid_parent))[1] into found, cut from pg_background_launch_num(array_to_string(queries, ','));
        steps := steps || text 'launch_num of one text, which is cut: ms';
        amounts := amounts || extract(epoch from clock_timestamp() - began) * 1000;
        assert found = jobs;
        perform pg_background_stop(cut, '0');
        commit;
    end if;

    began := clock_timestamp();
    select count(*) into found from pg_background_monitor(batch, p_show_verbose => false, p_timeout => '0');
    steps := steps || text 'monitor: ms';
    amounts := amounts || extract(epoch from clock_timestamp() - began) * 1000;
    assert found = jobs;
    commit;

    began := clock_timestamp();
    select queued into found from pg_background_batches where uuid_parent = batch;
    steps := steps || text 'pg_background_batches: ms';
    amounts := amounts || extract(epoch from clock_timestamp() - began) * 1000;
    assert found = jobs;
    commit;

    began := clock_timestamp();
    select count(*) into found from pg_background_stop(batch) where now = 'stopped';
    steps := steps || text 'stop: ms';
    amounts := amounts || extract(epoch from clock_timestamp() - began) * 1000;
    assert found = jobs;
    commit;

    began := clock_timestamp();
    perform pg_advisory_unlock(1);
    while exists (select from background_mgr.log where uuid_parent = batch and status = 'queued')
        or not exists (select from background_mgr.log where uuid_parent = batch)
    loop
        commit;
        perform pg_sleep(0.05);
    end loop;
    steps := steps || text 'all rows in the log: ms';
    amounts := amounts || extract(epoch from clock_timestamp() - began) * 1000;
    commit;

    insert into bench.queue (jobs, round, step, value)
    select queue.jobs, queue.round, step, amount from unnest(steps, amounts) as s (step, amount);
    while exists (select from pg_background_live()) loop
        commit;
        perform pg_sleep(0.05);
    end loop;
    perform pg_background_prune('0');
    truncate bench.yardstick;
end
$$;

call bench.queue(10000, 0);
select format('call bench.queue(%s, %s)', jobs, round)
from generate_series(1, :rounds) as round, unnest(array[10000, 100000, 1000000]) as jobs
\gexec

\echo 'A queue of as many jobs; medians of' :rounds 'rounds'
-- Of the memory what the first took: the next ones find it there.
select jobs, step,
       round(case when step like 'shared memory%' then max(value) else percentile_cont(0.5) within group (order by value) end::numeric, 1)
           as median
from bench.queue
where round > 0
group by jobs, step
order by min(number), jobs;

alter system reset pg_background_mgr.worker_idle_timeout;
alter system reset pg_background_mgr.max_workers;
alter system reset pg_background_mgr.queue_memory_limit;
select pg_reload_conf()
\gset ignored_
