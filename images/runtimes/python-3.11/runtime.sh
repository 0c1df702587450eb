#!/bin/sh
exec python3.11 -I "$@"
