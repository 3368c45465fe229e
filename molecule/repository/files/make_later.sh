#!/bin/sh
# make_later.sh STORE TARGET: what the tests publish later, made of the packages in STORE. TARGET/release: debzero 9.0
# with an environment of its own, all parts but NVIDIA's: as for another PyTorch. TARGET/rebuilt and TARGET/broken: the
# operators alone once more, for the same release; the second cannot be imported.
set -eu
store=$(realpath "$1") target=$2
runtime=2+later
deepspeed=$(dpkg-deb --field "$(echo "$store"/debzero-runtime-ops_*.deb)" Version | cut -d+ -f1)
torch=$(dpkg-deb --field "$(echo "$store"/debzero-runtime-torch_*.deb)" Version | sed 's/-.*//')-2
rm -rf "$target"

# FOLDER PACKAGE VERSION [MODULE TEXT]: with other versions in its control file, and the text at the end of the module
later() {
    stored=$(find "$store" -maxdepth 1 -name "$2_*.deb" | sort | tail -n 1)
    made=$target/$1/$2_$3_$(dpkg-deb --field "$stored" Architecture).deb work=$target/work
    mkdir -p "$target/$1" "$work/control" "$work/data"
    (cd "$work" && ar x "$stored")
    tar -C "$work/control" -xf "$work"/control.tar.*
    sed -i -e "s/^Version: .*/Version: $3/" -e "s/^Recommends: .*/Recommends: debzero-runtime (>= $runtime)/" \
        -e "s/debzero-runtime-torch (= [^)]*)/debzero-runtime-torch (= $torch)/" "$work/control/control"
    rm "$work"/control.tar.*
    tar --owner=root --group=root -C "$work/control" -czf "$work/control.tar.gz" .
    if [ $# -gt 3 ]; then
        tar -C "$work/data" -xf "$work"/data.tar.*
        rm "$work"/data.tar.*
        file=$(find "$work/data" -path "*/site-packages/$4")
        echo "$5" >>"$file"
        rm "$(dirname "$file")/__pycache__/$(basename "$file" .py)".*  # Python does not compare it with its source
        tar --owner=root --group=root -C "$work/data" -czf "$work/data.tar.gz" .
    fi
    ar rc "$made" "$work/debian-binary" "$work/control.tar.gz" "$work"/data.tar.*
    rm -rf "$work"
}

later release debzero 9.0
later release debzero-runtime "$runtime-1"
later release debzero-runtime-torch "$torch"
later release debzero-runtime-ops "$deepspeed+cpu.20990101.0000-1" deepspeed/git_version_info.py '# later'
later rebuilt debzero-runtime-ops "$deepspeed+cpu.20990102.0000-1" deepspeed/git_version_info.py '# rebuilt'
later broken debzero-runtime-ops "$deepspeed+cpu.20990103.0000-1" deepspeed/__init__.py 'raise OSError("planted")'
