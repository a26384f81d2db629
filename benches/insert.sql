-- An autonomous transaction: an INSERT that commits by itself, 1,000 times; beside dblink with one connection, and the INSERT
-- in the caller's own transaction. Each with synchronous_commit on and off.
\ir prelude.psql

-- The three ways; `query` is an expression that gives the INSERT of each turn.
create function bench.ways(commit text, query text) returns void language sql as $fn$
    insert into bench.way (name, statement, prepare) values
    ('dblink, open connection, ' || commit, bench.block(bench.connected(
        format('perform dblink_exec(''bench'', ''set synchronous_commit = %s'');', commit)
        || bench.loop(format('perform dblink_exec(''bench'', %s);', query))
    )), 'truncate bench.target'),
    ('pg_background_mgr, ' || commit, bench.block(
        format('perform set_config(''synchronous_commit'', ''%s'', true);', commit) || bench.loop(bench.job(query, 'text')), 'text'
    ), 'truncate bench.target'),
    ('in the own transaction, ' || commit, bench.block(
        format('perform set_config(''synchronous_commit'', ''%s'', true);', commit) || bench.loop(format('execute %s;', query))
    ), 'truncate bench.target');
    select bench.peer('pg_background, ' || commit, bench.block(
        format('perform set_config(''synchronous_commit'', ''%s'', true);', commit) || bench.loop(bench.peer_job(query, 'text')), 'text'
    ), 'truncate bench.target')
$fn$;

select bench.ways('on', :'insert'), bench.ways('off', :'insert')
\gset ignored_

call bench.run(:rounds);

\echo 'an INSERT that commits by itself, 1,000 times; synchronous_commit on and off;' :rounds 'rounds, ratio to dblink of the same kind'
select * from bench.report('an INSERT that commits, 1,000 times, synchronous_commit on', 'dblink, open connection, on', '%, on');
select * from bench.report('the same, synchronous_commit off', 'dblink, open connection, off', '%, off');
