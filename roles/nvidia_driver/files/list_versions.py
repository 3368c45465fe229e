#!/usr/bin/python3
"""Print the versions of a package that apt lists from an origin (Debian, NVIDIA), newest first."""

import sys

import apt

package, origin = sys.argv[1:]
cache = apt.Cache()
versions = cache[package].versions if package in cache else []
for version in sorted(versions, reverse=True):
    if any(source.origin == origin for source in version.origins):
        print(version.version)
