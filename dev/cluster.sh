# shellcheck shell=bash
# Throwaway clusters, for sourcing after env.sh:
#   start_cluster NN [pg_config]   sets PGHOST, PGUSER, PGDATABASE, and PATH so that the cluster's own psql comes first
#   cluster_setting 'name = value' before start_cluster: a line for postgresql.conf
# One a process, on a unix socket only, in a directory of its own under /tmp; stopped and removed when the script ends, however
# it ends.

WORKDIR=''
CLUSTER_BIN=''
CLUSTER_SETTINGS=()

# Runs a command as the servers' account. setpriv, unlike sudo, hands on the environment and needs no session.
as_account() {
    if is_root; then
        setpriv --reuid "$PGBM_ACCOUNT" --regid "$(id -g "$PGBM_ACCOUNT")" --init-groups "$@"
    else
        "$@"
    fi
}

# A directory that the servers' account owns; its path is short, because a socket's path is limited to 107 bytes.
make_workdir() {
    WORKDIR=$(mktemp -d /tmp/pgbm.XXXXXX)
    trap remove_workdir EXIT
    # Without these a signal would end the script before the EXIT trap has its turn at a running child.
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    ! is_root || chown "$PGBM_ACCOUNT:" "$WORKDIR"
}

# Stops whatever server runs in the directory (pgrx-tests makes one in a subdirectory), waits until it is gone, removes it.
remove_workdir() {
    local pidfile pid
    # Not interrupted by a second Ctrl-C.
    trap '' HUP INT TERM
    for pidfile in "$WORKDIR"/postmaster.pid "$WORKDIR"/*/postmaster.pid; do
        pid=$(head -n 1 "$pidfile" 2>/dev/null) || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ] || continue
        kill -QUIT "$pid" 2>/dev/null || true
        while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    done
    rm -rf "$WORKDIR"
}

cluster_setting() { CLUSTER_SETTINGS+=("$1"); }

start_cluster() {
    local version=$1 pg_config=${2:-} library
    [ -n "$pg_config" ] || pg_config=$(server_dir "$version")/bin/pg_config
    CLUSTER_BIN=$("$pg_config" --bindir)
    library=$("$pg_config" --libdir)
    make_workdir
    # From here: the account may not read the current directory.
    (
        cd "$WORKDIR" || exit
        as_account "$CLUSTER_BIN/initdb" --no-sync --auth=trust --username=postgres --encoding=UTF8 --locale=C \
            --pgdata=data >initdb.log 2>&1 || { cat initdb.log >&2; exit 1; }
        {
            echo "listen_addresses = ''"
            echo "unix_socket_directories = '$WORKDIR'"
            # Nothing in it outlives the script.
            echo "fsync = off"
            [ ${#CLUSTER_SETTINGS[@]} = 0 ] || printf '%s\n' "${CLUSTER_SETTINGS[@]}"
        } >>data/postgresql.conf
        # No RUST_BACKTRACE: it makes every caught error slow. LD_LIBRARY_PATH: dblink finds libpq there, in private servers only
        # there; for 12 and 13, whose lib has older copies of system libraries in it, it changes nothing.
        as_account env -u RUST_BACKTRACE LD_LIBRARY_PATH="$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
            "$CLUSTER_BIN/pg_ctl" start --silent --wait --pgdata=data --log=server.log || { cat server.log >&2; exit 1; }
    )
    export PGHOST=$WORKDIR PGUSER=postgres PGDATABASE=postgres PATH=$CLUSTER_BIN:$PATH
    unset PGPORT PGHOSTADDR PGSERVICE PGPASSWORD PGOPTIONS
}
