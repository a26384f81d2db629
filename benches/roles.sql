-- How fast jobs of many roles are done, which take turns: 200 jobs of 50 ms, 10 of each of 20 roles, with as many workers as each
-- way says; beside it the time that 14 workers that never change their role would take. Then one job of each of 500 roles with 6
-- workers. Wants SETTING="max_worker_processes = 16".

\if :{?rounds}
\else
\set rounds 5
\endif
\ir prelude.psql

do $$
begin
    for i in 1 .. 500 loop
        execute format('create role bench_role_%s login', i);
        perform pg_background_grant(format('bench_role_%s', i));
    end loop;
end
$$;

-- How many workers there may be at once. Returns when none is left of before; new sessions know it then.
create procedure bench.cap(cap int) language plpgsql as $$
begin
    perform dblink_connect('settings', current_setting('bench.server'));
    perform dblink_exec('settings', 'load ''pg_background_mgr''');
    perform dblink_exec('settings', format('alter system set pg_background_mgr.max_workers = %s', cap));
    perform dblink_exec('settings', 'alter system set pg_background_mgr.worker_idle_timeout = ''100ms''');
    perform dblink_disconnect('settings');
    perform pg_reload_conf();
    -- The postmaster has read it by then.
    perform pg_sleep(0.3);
    loop
        perform pg_stat_clear_snapshot();
        exit when not exists (select from pg_stat_activity where backend_type = 'pg_background');
        perform pg_sleep(0.01);
    end loop;
end
$$;

-- In a session of its own, which has read the configuration.
create function bench.of_roles(roles int, jobs int, query text) returns text language sql as $$
    select bench.block(format('perform dblink_connect(''bench'', current_setting(''bench.server'')); perform dblink_exec(''bench'', %L);
                               perform dblink_disconnect(''bench'');', format($way$
        do $inner$
        declare
            batches uuid[];
            batch uuid;
        begin
            for i in 1 .. %s loop
                execute format('set session authorization bench_role_%%s', i);
                select uuid_parent into batch from pg_background_launch_num(array_fill(%L::text, array[%s]));
                batches := batches || batch;
                reset session authorization;
            end loop;
            foreach batch in array batches loop
                perform from pg_background_monitor(batch, false) where status <> 'succeeded';
                assert not found;
            end loop;
        end
        $inner$
    $way$, roles, query, jobs)))
$$;

insert into bench.way (name, statement, prepare) values
('14 workers that never change, calculated', 'select pg_sleep(200 * 0.05 / 14)', null);
insert into bench.way (name, statement, prepare)
select format('%s workers', cap), bench.of_roles(20, 10, 'select pg_sleep(0.05)'), format('call bench.cap(%s)', cap)
from unnest(array[14, 11, 8, 6]) as cap;
insert into bench.way (name, statement, prepare) values
('500 roles', bench.of_roles(500, 1, 'select 1'), 'call bench.cap(6)');

call bench.run(:rounds);

\echo '200 jobs of 50 ms of 20 roles, and 500 jobs of 500 roles;' :rounds 'rounds, ratio to 14 workers without a pause'
select * from bench.report('jobs of many roles', '14 workers that never change, calculated');

alter system reset pg_background_mgr.max_workers;
alter system reset pg_background_mgr.worker_idle_timeout;
select pg_reload_conf()
\gset ignored_
