-- An autonomous transaction: an INSERT that commits by itself, 1,000 times; beside dblink with one connection, and the INSERT
-- in the caller's own transaction. Each with synchronous_commit on and off.
\ir prelude.psql

create table bench.target (a int);

create function bench.ways(commit text) returns void language sql as $fn$
    insert into bench.way (name, statement, prepare) values
    ('dblink, open connection, ' || commit, format($way$
        do $$
        begin
            perform dblink_connect('bench', current_setting('bench.server'));
            perform dblink_exec('bench', 'set synchronous_commit = %s');
            for i in 1 .. 1000 loop
                perform dblink_exec('bench', format('insert into bench.target values (%%s)', i));
            end loop;
            perform dblink_disconnect('bench');
        end
        $$
    $way$, commit), 'truncate bench.target'),
    ('pg_background_mgr, ' || commit, format($way$
        do $$
        declare
            result text;
        begin
            perform set_config('synchronous_commit', '%s', true);
            for i in 1 .. 1000 loop
                select * into result
                from pg_background_result(pg_background_launch(format('insert into bench.target values (%%s)', i))) as (result text);
            end loop;
        end
        $$
    $way$, commit), 'truncate bench.target'),
    ('in the own transaction, ' || commit, format($way$
        do $$
        begin
            perform set_config('synchronous_commit', '%s', true);
            for i in 1 .. 1000 loop
                execute format('insert into bench.target values (%%s)', i);
            end loop;
        end
        $$
    $way$, commit), 'truncate bench.target')
$fn$;

select bench.ways('on'), bench.ways('off')
\gset ignored_

call bench.run(:rounds);

\echo 'an INSERT that commits by itself, 1,000 times; synchronous_commit on and off;' :rounds 'rounds, ratio to dblink of the same kind'
select * from bench.report('dblink, open connection, on') where way like '%, on';
select * from bench.report('dblink, open connection, off') where way like '%, off';
