#!/bin/sh
# Installs the packages of a folder that fetch.sh made. Usage: install.sh FOLDER
# apt checked their signatures when they were fetched, and nothing is fetched here: where the archive still has a
# package, apt takes its own copy of it, which it looks for in the same folder.
set -eu
export DEBIAN_FRONTEND=noninteractive
exec apt-get install --yes --quiet --no-install-recommends --allow-downgrades --allow-change-held-packages \
  --no-download -oDir::Cache::Archives="$1" -oDpkg::Options::=--force-confold -oDpkg::Options::=--force-confdef \
  "$1"/*.deb
