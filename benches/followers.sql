-- What sessions that follow a batch cost it: 1,500 jobs of 20 ms, and 20,000 jobs that do nothing, without and with 10 and 150
-- sessions in pg_background_monitor. What is timed ends with the last job. Wants SETTING="max_worker_processes = 16" and
-- max_connections = 200.

\if :{?rounds}
\else
\set rounds 5
\endif
\ir prelude.psql

-- As many sessions as are to follow.
create procedure bench.followers(count int) language plpgsql as $$
declare
    name text;
begin
    foreach name in array coalesce(dblink_get_connections(), '{}') loop
        perform from dblink_get_result(name, false) as t (count bigint);
        perform dblink_disconnect(name);
    end loop;
    for i in 1 .. count loop
        perform dblink_connect(format('follower %s', i), current_setting('bench.server'));
    end loop;
    while exists (select from pg_background_live()) loop
        perform pg_sleep(0.1);
    end loop;
end
$$;

-- Launches jobs, has all those sessions follow them, and waits for their end, as another one that follows.
create function bench.followed(query text, jobs int) returns text language sql as $$
    select bench.block(format($way$
        select uuid_parent into batch from pg_background_launch_num(array_fill(%L::text, array[%s]));
        foreach name in array coalesce(dblink_get_connections(), '{}') loop
            perform dblink_send_query(name, format('select count(*) from pg_background_monitor(%%L, false)', batch));
        end loop;
        perform from pg_background_monitor(batch, false) where status <> 'succeeded';
    $way$, query, jobs), 'int; batch uuid; name text')
$$;

insert into bench.way (name, statement, prepare)
select format('%s jobs%s, %s followers', jobs, what, followers), bench.followed(query, jobs), format('call bench.followers(%s)', followers)
from (values (1500, ' of 20 ms', 'select pg_sleep(0.02)'), (20000, '', 'select 1')) as job (jobs, what, query),
    unnest(array[0, 10, 150]) as followers;

call bench.run(:rounds);
call bench.followers(0);

\echo '1,500 jobs of 20 ms;' :rounds 'rounds, ratio to the same without followers'
select * from bench.report('1500 jobs of 20 ms', '1500 jobs of 20 ms, 0 followers', '1500%');
\echo '20,000 jobs that do nothing'
select * from bench.report('20000 jobs', '20000 jobs, 0 followers', '20000%');
