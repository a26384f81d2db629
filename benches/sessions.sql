-- Many sessions that launch at once: 1, 4, 12, 32 and 64 of them share 6,000 times `select 1`, each in a loop of launch and result.
-- A launch that is refused ends the benchmark. Wants SETTING=$'max_worker_processes = 16\nmax_connections = 200'.

\if :{?rounds}
\else
\set rounds 5
\endif
\ir prelude.psql

-- So many sessions run `body` at the same time, each as often as its share of `times`; they are connected before.
create function bench.at_once(sessions int, times int, body text) returns text language sql as $$
    select bench.block(format($way$
        for s in 1 .. %1$s loop
            perform dblink_send_query('bench ' || s, %2$L);
        end loop;
        for s in 1 .. %1$s loop
            perform from dblink_get_result('bench ' || s) as done (tag text);
            perform from dblink_get_result('bench ' || s) as done (tag text);
        end loop;
    $way$, sessions, bench.block(bench.loop(body, times / sessions))))
$$;

create procedure bench.connect(sessions int) language plpgsql as $$
begin
    perform dblink_disconnect(name) from unnest(dblink_get_connections()) as name;
    for s in 1 .. sessions loop
        perform dblink_connect('bench ' || s, current_setting('bench.server'));
    end loop;
end
$$;

insert into bench.way (name, statement, prepare)
select format('%s session%s', sessions, case when sessions > 1 then 's' end), bench.at_once(sessions, 6000, bench.job($$'select 1'$$)),
       format('call bench.connect(%s)', sessions)
from unnest(array[1, 4, 12, 32, 64]) as sessions;

call bench.run(:rounds);

\echo '`select 1`, 6,000 times, by several sessions at once;' :rounds 'rounds, ratio to 4 sessions'
select * from bench.report('select 1, 6,000 times, by sessions at once', '4 sessions');
