-- What followers cost a batch: 20,000 tiny jobs in 6 workers with no, 1 and 10 followers, and 1,500 jobs of 20 ms in 14 workers with
-- none and 150. Each time is that from the moment when all that follow wait to the end of the last job, as the log has it. Wants
-- SETTING=$'max_worker_processes = 16\nmax_connections = 200'.

\if :{?rounds}
\else
\set rounds 5
\endif
\ir prelude.psql

create table bench.gate ();
create table bench.follow (number int, workers int, followers int, jobs int, query text);

with ways as (
    insert into bench.way (name)
    values ('tiny jobs, nobody follows'), ('tiny jobs, 1 follower'), ('tiny jobs, 10 followers'), ('jobs of 20 ms, nobody follows'),
           ('jobs of 20 ms, 150 followers')
    returning number, name
)
insert into bench.follow
select number, case when name like 'tiny%' then 6 else 14 end,
       case when name like '%nobody%' then 0 else substring(name from '([0-9]+) follower')::int end,
       case when name like 'tiny%' then 20000 else 1500 end,
       case when name like 'tiny%' then 'select 1' else 'select pg_sleep(0.02)' end
from ways;

-- Returns the milliseconds of one batch. Other jobs wait for the gate, one in each worker, and the batch behind them.
create function bench.follow(workers int, followers int, jobs int, query text) returns float8 language plpgsql as $$
declare
    at_gate constant text := format('select count(*) = %s from pg_locks where relation = ''bench.gate''::regclass and not granted', workers);
    batch uuid;
    last_job uuid;
    opened timestamptz;
    is_so bool;
begin
    perform dblink_connect('control', current_setting('bench.server'));
    perform dblink_connect('gate', current_setting('bench.server'));
    perform dblink_exec('gate', 'begin; lock table bench.gate');
    -- Each in a batch of its own: a worker may claim several jobs of one.
    perform from dblink('control', format(
        'select (pg_background_launch_num(array[''table bench.gate''])).status from generate_series(1, %s)', workers)) as done (status text);
    loop
        select * into is_so from dblink('control', at_gate) as look (is_so bool);
        exit when is_so;
        perform pg_sleep(0.01);
    end loop;
    select parent, child into batch, last_job from dblink('control', format(
        'select uuid_parent, uuid_child from pg_background_launch_num(array_fill(%L::text, array[%s]),
         p_options => ''{"max_workers": %s}'') order by uuid_child desc limit 1',
        query, jobs, workers)) as launched (parent uuid, child uuid);
    for i in 1 .. followers loop
        perform dblink_connect('follower ' || i, current_setting('bench.server'));
        perform dblink_send_query('follower ' || i, format('select count(*) from pg_background_monitor(%L)', batch));
    end loop;
    loop
        select * into is_so from dblink('control', format(
            'select count(*) = %s from pg_stat_activity where query like ''select count(%%pg_background_monitor(%%'' and state = ''active''
                 and wait_event_type = ''Extension''', followers)) as look (is_so bool);
        exit when is_so;
        perform pg_sleep(0.01);
    end loop;
    opened := clock_timestamp();
    perform dblink_exec('gate', 'commit');
    loop
        select * into is_so from dblink('control', format(
            'select status <> ''queued'' from background_mgr.log where uuid_child = %L', last_job)) as look (is_so bool);
        exit when is_so;
        perform pg_sleep(0.05);
    end loop;
    perform from dblink('control', format('select count(*) from pg_background_monitor(%L, false)', batch)) as done (jobs int8);
    for i in 1 .. followers loop
        perform from dblink_get_result('follower ' || i) as done (jobs int8);
        perform dblink_disconnect('follower ' || i);
    end loop;
    perform dblink_disconnect('gate');
    perform dblink_disconnect('control');
    return (select extract(epoch from max(end_time_exec) - opened) * 1000 from log_background where uuid_parent = batch);
end
$$;

create procedure bench.follow_all(rounds int) language plpgsql as $$
declare
    way bench.follow;
begin
    for round in 0 .. rounds loop
        for way in select * from bench.follow order by number loop
            insert into bench.sample values (way.number, round, bench.follow(way.workers, way.followers, way.jobs, way.query));
            commit;
            perform pg_background_prune('0');
            commit;
        end loop;
    end loop;
end
$$;

call bench.follow_all(:rounds);

\echo '20,000 tiny jobs in 6 workers, and 1,500 jobs of 20 ms in 14;' :rounds 'rounds, ratio to those that nobody follows'
select * from bench.report('tiny jobs that are followed', 'tiny jobs, nobody follows', 'tiny%');
select * from bench.report('jobs of 20 ms that are followed', 'jobs of 20 ms, nobody follows', 'jobs%');
