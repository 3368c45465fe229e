#!/bin/sh
# make_later.sh STORE TARGET: of the packages debzero and debzero-runtime in STORE a later version each in TARGET: the
# environment has one module more, and debzero recommends that environment.
set -eu
store=$1 target=$2
later=2+later
mkdir -p "$target"

repack() { # PACKAGE VERSION EDIT: the function EDIT changes what is unpacked in the current folder
    made=$target/$1_$2_$3.deb
    [ ! -e "$made" ] || return 0
    rm -rf "${target:?}/$1"
    dpkg-deb --raw-extract "$(find "$store" -name "$1_*.deb" | sort | tail -n 1)" "$target/$1"
    cd "$target/$1"
    sed -i -e "s/^Version: .*/Version: $2/" -e "s/^Recommends: .*/Recommends: debzero-runtime (>= $later)/" \
        DEBIAN/control
    "edit_$(echo "$1" | tr - _)"
    find . -type f ! -path './DEBIAN/*' -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums
    cd - >/dev/null
    dpkg-deb --root-owner-group -Zgzip -z1 --build "$target/$1" "$made" >/dev/null
    rm -rf "${target:?}/$1"
}
edit_debzero_runtime() {
    echo "$later-1" >usr/lib/debzero/runtime/parts/rest/versions/rest
    echo 'THERE = True' >"$(echo usr/lib/debzero/runtime/parts/rest/lib/python3.*/site-packages)/debzero_later.py"
}
edit_debzero() {
    :
}

repack debzero-runtime "$later-1" amd64
repack debzero 9.0 all
