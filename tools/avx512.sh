#!/usr/bin/env bash
# Builds tests of the workspace and runs them on an emulated CPU with AVX-512, from Debian packages alone.
#
#   tools/avx512.sh test --package squish-kernels               unit and integration tests at the `avx512` level, run by Bochs
#   tools/avx512.sh test --package squish-kernels -- softmax    what follows `--` goes to each test binary
#
# Needs root and a Debian machine for x86-64. The first call makes a Debian tree of about 1 GB in $SQUISH_AVX512 (default:
# ~/.cache/squish-avx512) and compiles Bochs in it, which takes some minutes; later calls reuse it. The CPU is Sapphire Rapids
# (with AVX512-BF16 and AVX-VNNI); SQUISH_AVX512_CPU=corei7_icelake_u is one without these two. It runs some 100 million
# instructions a second on one core, so PROPTEST_CASES is 16 unless set; SQUISH_SIMD reaches the tests, too. Doctests are not
# run, and a test sees the files that git knows or would add. It shows that the code is right on AVX-512, not how fast it is.
set -euo pipefail
[ "${1-}" = test ] || { sed -n '2,12p' "$0" >&2; exit 2; }
shift

cache=${SQUISH_AVX512:-$HOME/.cache/squish-avx512}
tree=$cache/tree
top=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
target=x86_64-unknown-linux-gnu

# The mirror that this machine's apt already uses.
mirror() {
  local found
  found=$(sed -n 's/^URIs: *\(.*\/debian\)$/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
  [ -n "$found" ] || found=$(sed -n 's/^deb \([^ ]*\/debian\) .*/\1/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
  [ -n "$found" ] || { echo "no Debian mirror among apt's sources" >&2; exit 1; }
  echo "$found"
}

# Debian's own build of Bochs has AVX-512 too, but without the optimizations it takes 1.7 times as long.
make_tree() {
  command -v debootstrap >/dev/null || { apt-get update -q && apt-get install -y -q debootstrap; }
  local from
  from=$(mirror)
  rm -rf "$tree"
  mkdir -p "$tree"
  debootstrap --variant=minbase --include=ca-certificates trixie "$tree" "$from"
  printf 'deb %s trixie main\ndeb-src %s trixie main\n' "$from" "$from" > "$tree/etc/apt/sources.list"
  cp -L /etc/resolv.conf /etc/hosts "$tree/etc/"
  cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
  chroot "$tree" bash -ec 'export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends busybox-static cpio g++ isolinux make pkg-config syslinux-common xorriso xz-utils
    mkdir /build
    cd /build
    apt-get source -q --tar-only bochs
    tar -xf bochs_*.tar.xz
    cd bochs-*/
    ./configure --enable-x86-64 --enable-avx --enable-evex --enable-all-optimizations --disable-docbook --with-nogui CXXFLAGS=-O3
    make
    cp bochs /usr/local/bin/
    cd /build
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-[^ ]*\)$/\1/p" | head -n 1)
    apt-get download -q bochsbios vgabios "$kernel"
    for package in *.deb; do dpkg -x "$package" /guest; done
    cp /guest/boot/vmlinuz-* /guest/vmlinuz
    rm -rf /build /guest/usr/lib/modules'
  touch "$tree/.ready"
}

[ -e "$tree/.ready" ] || make_tree

# Static binaries need nothing of the guest but its kernel.
build=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do build+=("$1"); shift; done
[ $# -eq 0 ] || shift
messages=$(cd "$top" && CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target} RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static" \
  cargo test --target "$target" --no-run --message-format=json-render-diagnostics "${build[@]}")
mapfile -t tests < <(sed -n 's/.*"manifest_path":"\([^"]*\)\/Cargo.toml".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1\t\2/p' <<< "$messages")
[ ${#tests[@]} -gt 0 ] || { echo "cargo built no test binaries" >&2; exit 1; }

bochs_pid=
run=$(mktemp -d "$tree/run.XXXXXX")
trap '[ -z "$bochs_pid" ] || kill "$bochs_pid" 2>/dev/null || true; rm -rf "$run"' EXIT
guest=$run/root
mkdir -p "$guest"/{bin,dev,proc,sys,tmp,tests} "$run/disk"

# Tests open files by the absolute path of their crate, so the repository lies where it lies here.
mkdir -p "$guest$top"
(cd "$top" && git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do if [ -e "$f" ]; then printf '%s\0' "$f"; fi; done |
  tar --null -T - -cf -) | tar -xf - -C "$guest$top"

# What the kernel runs as its first process. With ACPI off there is no power switch: the end is a reset by triple fault.
cp "$tree/bin/busybox" "$guest/bin/"
{
  cat <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ip link set lo up
stty -onlcr
failed=0
one() { # crate, name, binary, arguments
  echo "     Running $2"
  cd "$1"
  shift 2
  CARGO_MANIFEST_DIR=$PWD "$@" || failed=$((failed + 1))
}
echo "avx512.sh: begin"
for flag in avx512f avx512bw avx512vbmi avx512_vnni; do
  grep -qw "$flag" /proc/cpuinfo || { echo "the emulated CPU has no $flag"; failed=1; }
done
INIT
  printf 'export HOME=/tmp PATH=/bin RUST_BACKTRACE=%q PROPTEST_CASES=%q\n' "${RUST_BACKTRACE-0}" "${PROPTEST_CASES-16}"
  printf 'export INSTA_WORKSPACE_ROOT=%q INSTA_UPDATE=no\n' "$top"
  [ -z "${SQUISH_SIMD-}" ] || printf 'export SQUISH_SIMD=%q\n' "$SQUISH_SIMD"
  for i in "${!tests[@]}"; do
    IFS=$'\t' read -r crate binary <<< "${tests[i]}"
    cp "$binary" "$guest/tests/$i"
    chroot "$tree" strip --strip-debug "/${guest#"$tree"/}/tests/$i"
    printf '%q ' one "$crate" "${crate##*/}/$(basename "$binary")" "/tests/$i" "$@"
    echo
  done
  echo 'echo "avx512.sh: end $failed"'
  echo 'reboot -f'
} > "$guest/init"
chmod +x "$guest/init"

# `no5lvl` and `acpi=off` keep away from what Bochs 3.0 refuses: its BIOS enters system management mode to switch ACPI on.
cat > "$run/disk/isolinux.cfg" <<'CFG'
default guest
label guest
  kernel vmlinuz
  initrd initrd
  append console=ttyS0,115200 quiet loglevel=3 acpi=off no5lvl mitigations=off reboot=t panic=-1
CFG
inside=/${run#"$tree"/}
cat > "$run/bochsrc" <<CFG
romimage: file=/guest/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/guest/usr/share/vgabios/vgabios.bin
cpu: model=${SQUISH_AVX512_CPU:-sapphire_rapids}, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=2048, host=2048
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$inside/disk.iso, status=inserted
boot: cdrom
display_library: nogui
com1: enabled=1, mode=file, dev=$inside/serial
log: $inside/log
panic: action=fatal
clock: sync=none, time0=local
CFG
chroot "$tree" bash -ec 'cd "$1"
  cp /guest/vmlinuz /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 disk/
  (cd root && find . -print0 | cpio --null --create --format=newc --quiet) > disk/initrd
  xorriso -as mkisofs -quiet -o disk.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table disk 2> iso.log || { cat iso.log >&2; exit 1; }' - "$inside"

: > "$run/serial"
chroot "$tree" bochs -q -f "$inside/bochsrc" < /dev/null > "$run/bochs" 2>&1 &
bochs_pid=$!
tail --pid="$bochs_pid" --sleep-interval=0.5 -n +1 -f "$run/serial" | tr -d '\r' | sed -u -n '/^avx512.sh: begin/,/^avx512.sh: end/ { /^avx512.sh: /!p }'
wait "$bochs_pid" || true
bochs_pid=

failed=$(tr -d '\r' < "$run/serial" | sed -n 's/^avx512.sh: end //p')
if [ -z "$failed" ]; then
  { tail -n 30 "$run/serial"; tail -n 15 "$run/bochs"; tail -n 30 "$run/log"; } >&2
  echo "the guest ended before its tests did; above is the end of its console and of the emulator's log" >&2
  exit 1
fi
[ "$failed" -eq 0 ] || { echo "$failed of ${#tests[@]} test binaries failed" >&2; exit 1; }
