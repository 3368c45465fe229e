#!/bin/sh
# Makes of NVIDIA's cuDNN archive the two packages that NVIDIA has for later releases. They land in FOLDER. The static
# libraries (half of the archive) are left out, and nothing is compressed: they are installed on the spot and removed.
# Usage: build_cudnn.sh ARCHIVE VERSION FOLDER
set -eu
archive=$1 version=$2 folder=$3

mkdir -p "$folder/all"
tar --extract --file="$archive" --directory="$folder/all" --strip-components=1 --exclude='*.a'

# package NAME DEPENDS DESCRIPTION, with its files already in $folder/NAME
package() {
  mkdir -p "$folder/$1/DEBIAN" "$folder/$1/usr/share/doc/$1"
  cp "$folder/all/LICENSE" "$folder/$1/usr/share/doc/$1/copyright"
  cat >"$folder/$1/DEBIAN/control" <<CONTROL
Package: $1
Version: $version
Architecture: amd64
Section: non-free/libs
Maintainer: debzero developers <root@localhost>
Depends: $2
Description: $3
 Packaged on this host from NVIDIA's archive.
CONTROL
  [ "$1" != libcudnn8 ] || echo "activate-noawait ldconfig" >"$folder/$1/DEBIAN/triggers"
  chmod -R u+w,go=rX "$folder/$1"
  dpkg-deb --root-owner-group -Znone --build "$folder/$1" "$folder/$1.deb"
}

for name in libcudnn8 libcudnn8-dev; do mkdir -p "$folder/$name/usr/lib/x86_64-linux-gnu"; done
mv "$folder"/all/lib/lib*.so.* "$folder/libcudnn8/usr/lib/x86_64-linux-gnu/"
mv "$folder"/all/lib/lib*.so "$folder/libcudnn8-dev/usr/lib/x86_64-linux-gnu/"
mkdir -p "$folder/libcudnn8-dev/usr/include"
mv "$folder/all/include" "$folder/libcudnn8-dev/usr/include/x86_64-linux-gnu"
package libcudnn8 "libc6, libgcc-s1, libstdc++6, zlib1g" "NVIDIA cuDNN, libraries"
package libcudnn8-dev "libcudnn8 (= $version)" "NVIDIA cuDNN, headers"
