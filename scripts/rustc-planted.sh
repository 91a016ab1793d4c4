#!/usr/bin/env bash
# What planted.sh has cargo call instead of the compiler, for the crates of the workspace alone.
exec "$@" --cfg dlock_planted
