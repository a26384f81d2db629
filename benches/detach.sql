-- Fire and forget: `select 1`, 500 times, each result given up at once; beside the same with each result read. In workers that
-- stay, and each time in a new one. A launch that finds no process is tried again.
\ir prelude.psql

create function bench.given_up(query text) returns text language sql as $$
    select format('loop begin perform pg_background_detach(pg_background_launch(%s)); exit; '
                  'exception when insufficient_resources then perform pg_sleep(0.001); end; end loop;', query)
$$;

insert into bench.way (name, statement, prepare) values
('read, new worker', bench.block(bench.loop(bench.job($$'select 1'$$), 500)), 'call bench.workers_stay(false)'),
('given up, new worker', bench.block(bench.loop(bench.given_up($$'select 1'$$), 500)), 'call bench.workers_stay(false)'),
('read, worker that stays', bench.block(bench.loop(bench.job($$'select 1'$$), 500)), 'call bench.workers_stay(true)'),
('given up, worker that stays', bench.block(bench.loop(bench.given_up($$'select 1'$$), 500)), 'call bench.workers_stay(true)');

call bench.run(:rounds);

\echo '`select 1`, 500 times;' :rounds 'rounds, ratio to reading the result in a worker that stays'
select * from bench.report('select 1, 500 times, given up', 'read, worker that stays');
