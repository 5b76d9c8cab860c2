#!/usr/bin/env bash
# Builds and tests crates of the workspace for aarch64 under emulation, from Debian packages alone.
#
#   tools/cross.sh test --package squish-kernels     cargo test for aarch64-unknown-linux-gnu, run by qemu (NEON)
#
# Needs root and a Debian machine. The first call makes a Debian tree of about 2 GB in $SQUISH_FOREIGN (default:
# ~/.cache/squish-foreign), a folder that must not be there yet, and takes some minutes; later calls reuse it. In the tree live a
# rustc of Debian's backports with the standard library of the foreign machine, a cross linker, and qemu. It shows that the code
# is right on NEON, not how fast it is.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9p' "$0"; exit 2; }

tree=${SQUISH_FOREIGN:-$HOME/.cache/squish-foreign}
top=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
target=aarch64-unknown-linux-gnu

# The mirror that this machine's apt already uses.
mirror() {
  local found
  found=$(sed -n 's/^URIs: *\(.*\/debian\)$/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
  [ -n "$found" ] || found=$(sed -n 's/^deb \([^ ]*\/debian\) .*/\1/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
  [ -n "$found" ] || { echo "no Debian mirror among apt's sources" >&2; exit 1; }
  echo "$found"
}

# Made beside its place and moved there when it is whole; neither removes anything that somebody else put there.
make_tree() {
  command -v debootstrap >/dev/null || { apt-get update -q && apt-get install -y -q debootstrap; }
  local from new
  from=$(mirror)
  mkdir -p "$(dirname "$tree")"
  new=$(mktemp -d "$tree.XXXXXX")
  chmod 755 "$new"
  debootstrap --variant=minbase --include=ca-certificates trixie "$new" "$from"
  printf 'deb %s trixie main\ndeb %s trixie-backports main\n' "$from" "$from" > "$new/etc/apt/sources.list"
  cp -L /etc/resolv.conf /etc/hosts "$new/etc/"
  cp -L /etc/ssl/certs/ca-certificates.crt "$new/etc/ssl/certs/"
  chroot "$new" bash -ec 'export DEBIAN_FRONTEND=noninteractive
    dpkg --add-architecture arm64
    apt-get update -q
    apt-get install -y -q --no-install-recommends -t trixie-backports rustc cargo libstd-rust-dev libstd-rust-dev:arm64
    apt-get install -y -q --no-install-recommends gcc gcc-aarch64-linux-gnu libc6-dev:arm64 qemu-user'
  touch "$new/.ready"
  mv -T "$new" "$tree"
}

if [ ! -e "$tree/.ready" ]; then
  [ ! -e "$tree" ] || { echo "$tree is there and is no tree of this script; name another in SQUISH_FOREIGN, or remove it" >&2; exit 1; }
  make_tree
fi

# A copy of what git knows or would add; the build folder beside it is kept between calls. Deleted files must go from the copy, too.
work=$tree/build/squish
rm -rf "${work:?}"
mkdir -p "$work" "$tree/build/target"
(cd "$top" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do if [ -e "$f" ]; then printf '%s\0' "$f"; fi; done |
  tar --null -T - -cf -) | tar -xf - -C "$work"

# Cargo takes the target after its subcommand; quoting keeps arguments with spaces whole.
subcommand=$1
shift
printf '%q ' cargo "$subcommand" --target "$target" "$@" > "$tree/build/command"
exec chroot "$tree" bash -ec "cd /build/squish
  export CARGO_TARGET_DIR=/build/target CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64 PROPTEST_CASES=\${PROPTEST_CASES:-16}
  bash /build/command"
