# shellcheck shell=bash disable=SC2034
# Versions and paths of the development scripts, for sourcing: the one place that knows them.

PGBM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# What is expensive to get (servers, cargo-pgrx) is kept outside the checkout, so that every checkout and every clean shares it.
# Root cannot use its home: the servers run under another account, which could not read them there.
if [ -z "${PGBM_HOME:-}" ]; then
    if [ "$(id -u)" = 0 ]; then
        PGBM_HOME=/var/cache/pg_background_mgr
    else
        PGBM_HOME=${XDG_CACHE_HOME:-$HOME/.cache}/pg_background_mgr
    fi
fi
export PGBM_HOME

# One target directory a server version: the versions' builds would evict each other's dependencies from a common one.
PGBM_TARGET=${PGBM_TARGET:-$PGBM_ROOT/target}

# The account of the servers. PostgreSQL refuses to run as root.
PGBM_ACCOUNT=postgres

# PostgreSQL 12 and 13 come without client programs and borrow this version's.
CLIENT_VERSION=17

in_line=''
die() {
    # The line of a step is still open.
    [ -z "$in_line" ] || echo >&2
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

say() { printf '\033[1m%s\033[0m\n' "$*"; }

# timed TEXT COMMAND...: one line, of what is done and how long it took. In a shell of its own, where `set -e` holds also when
# the status is looked at.
timed() {
    local began=$SECONDS status
    printf '%s ... ' "$1"
    set +e
    (
        set -e
        in_line=true
        "${@:2}"
    )
    status=$?
    set -e
    [ $status = 0 ] || { printf 'failed after %s s\n' $((SECONDS - began)); exit $status; }
    printf '%s s\n' $((SECONDS - began))
}

is_root() { [ "$(id -u)" = 0 ]; }

# Every version that the project knows, oldest first.
all_versions() { sed -nE 's/^([0-9]+) .*/\1/p' "$PGBM_ROOT/dev/servers.lock"; }

check_version() {
    local known
    known=$(all_versions | xargs)
    [[ -n ${1:-} && " $known " == *" $1 "* ]] || die "PostgreSQL '${1:-}' is not one of: $known"
}

# The version of the extension.
extension_version() { sed -nE 's/^version *= *"([^"]+)".*/\1/p;/^\[features\]/q' "$PGBM_ROOT/Cargo.toml"; }

# The dependency that is the pgrx for PostgreSQL $1: the feature pgNN names it first.
pgrx_dependency() { sed -nE "s/^pg$1 *= *\[ *\"([a-z0-9_]+)\/pg$1\".*/\1/p" "$PGBM_ROOT/Cargo.toml"; }

# The feature with which #[pg_test] functions are built for PostgreSQL $1: pgrx_013 has pgrx_tests_013.
tests_feature() { pgrx_dependency "$1" | sed 's/^pgrx_/pgrx_tests_/'; }

# The version of the pgrx that serves PostgreSQL $1, as Cargo.toml says.
pgrx_version() {
    local dependency version
    dependency=$(pgrx_dependency "$1")
    version=$(sed -nE "s/^${dependency:-none} *=.*version *= *\"=([^\"]+)\".*/\1/p" "$PGBM_ROOT/Cargo.toml")
    [ -n "$version" ] || die "cannot tell from Cargo.toml which pgrx serves PostgreSQL $1"
    printf '%s\n' "$version"
}

pgrx_versions() { for v in $(all_versions); do pgrx_version "$v"; done | sort -uV; }

# The real cargo-pgrx of pgrx version $1; dev/cargo-pgrx chooses between them.
cargo_pgrx_program() { printf '%s\n' "$PGBM_HOME/cargo-pgrx/$1/bin/cargo-pgrx"; }

# The private server of version $1, and its twin for `cargo pgrx test`, which installs a build with test functions in it under
# the extension's own names: in a tree of its own it is never seen by a cluster that runs on the first.
server_dir() { printf '%s\n' "$PGBM_HOME/pg/$1"; }
twin_dir() { printf '%s\n' "$PGBM_HOME/pg-test/$1"; }

# Major version of the server that pg_config $1 belongs to.
version_of() {
    local text
    [ -x "$1" ] || die "no pg_config at '$1'; name that of your server: PG_CONFIG=/usr/lib/postgresql/17/bin/pg_config"
    text=$("$1" --version 2>/dev/null) || die "cannot run $1"
    sed -nE 's/^PostgreSQL ([0-9]+).*/\1/p' <<<"$text"
}

# The headers of the server that pg_config $1 of version $2 belongs to must be there.
check_headers() {
    local headers
    headers=$("$1" --includedir-server)
    [ -f "$headers/postgres.h" ] ||
        die "no server headers in $headers; on Debian they are in the package postgresql-server-dev-$2"
}

# Sets library and share, the directories of the server of pg_config $1 that hold the extension's files; installed, those that are
# there; and as_owner, what a command that writes there begins with.
installed_files() {
    local file
    library=$("$1" --pkglibdir) share=$("$1" --sharedir)/extension
    installed=()
    for file in "$library/pg_background_mgr.so" "$share/pg_background_mgr.control" "$share"/pg_background_mgr--*.sql; do
        [ ! -e "$file" ] || installed+=("$file")
    done
    as_owner=()
    if ! { [ -w "$library" ] && [ -w "$share" ]; }; then as_owner=(sudo); fi
}

# Sets the environment in which cargo builds for PostgreSQL $1. With a pg_config as $2 it is that server's headers, else the
# private server's.
build_environment() {
    local version=$1 pg_config=${2:-}
    export PGRX_HOME=$PGBM_HOME/pgrx/$version
    if [ -n "$pg_config" ]; then
        check_headers "$pg_config" "$version"
        # pgrx's build script runs again whenever this variable changes: such builds get a directory apart.
        export PGRX_PG_CONFIG_PATH=$pg_config CARGO_TARGET_DIR=$PGBM_TARGET/pg$version-system
        return
    fi
    unset PGRX_PG_CONFIG_PATH
    pg_config=$(twin_dir "$version")/bin/pg_config
    [ -x "$pg_config" ] || die "no $pg_config; run: dev/setup $version"
    export CARGO_TARGET_DIR=$PGBM_TARGET/pg$version
    # cargo-pgrx 0.18 links the library, but not the tests, with a flag of its own against linkers that drop the SQL in it; for
    # cargo that is a second build of everything, and on this platform the linker keeps it.
    export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1
    if ! [ -f "$("$pg_config" --includedir-server)/postgres.h" ]; then
        # PostgreSQL 12 and 13: no headers to make bindings from. pgrx-pg-sys carries ready ones for its documentation.
        export DOCS_RS=1 RUSTC_WRAPPER=$PGBM_ROOT/dev/rustc-docsrs
    fi
}
