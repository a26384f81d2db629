-- Fire and forget: `select 1`, 500 times, each result given up at once; beside the same with each result read. In workers that
-- stay, and each time in a new one. A launch that finds no process is tried again. Then an INSERT in a row trigger, 2,000 times, with
-- the default settings, where a launch that is refused ends the benchmark.
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

create function bench.launch_in_trigger() returns trigger language plpgsql as $$
declare
    pid int := pg_background_launch(format('insert into bench.target values (%s)', new.i));
begin
    if tg_argv[0] = 'read' then
        perform from pg_background_result(pid) as (result text);
    else
        perform pg_background_detach(pid);
    end if;
    return new;
end
$$;
create table bench.read (i int);
create trigger launch before insert on bench.read for each row execute function bench.launch_in_trigger('read');
create table bench.given_up (i int);
create trigger launch before insert on bench.given_up for each row execute function bench.launch_in_trigger('given up');

truncate bench.way restart identity;
truncate bench.sample;
insert into bench.way (name, statement, prepare) values
('in a trigger, read', 'insert into bench.read select generate_series(1, 2000)', 'call bench.workers_stay(true)'),
('in a trigger, given up', 'insert into bench.given_up select generate_series(1, 2000)', 'call bench.workers_stay(true)');

call bench.run(:rounds);

\echo 'An INSERT in a row trigger, 2,000 times;' :rounds 'rounds, ratio to reading the result'
select * from bench.report('INSERT in a trigger, 2,000 times', 'in a trigger, read');
