#!/bin/sh
# Fetches the signed index of each archive that apt is configured with (or of the URLs given) to a folder that is
# removed again, with apt's own proxies and timeouts. Prints "URL<tab>reason" for each that cannot be fetched.
set -u
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"

if [ $# -eq 0 ]; then
  # shellcheck disable=SC2046 # one URL a word
  set -- $(apt-get --print-uris update | sed -n "s/^'\([^']*InRelease\)'.*/\1/p")
fi
[ $# -gt 0 ] || printf 'no archive\tapt has none configured\n'
for url; do
  /usr/lib/apt/apt-helper -qq -oAcquire::Retries=2 -oAcquire::http::Timeout=20 -oAcquire::https::Timeout=20 \
    -oAPT::Sandbox::User=root download-file "$url" "$scratch/index" >"$scratch/log" 2>&1 ||
    printf '%s\t%s\n' "$url" "$(grep -m1 '^E:' "$scratch/log" || tail -n1 "$scratch/log")"
done
