#!/bin/sh
exec ruby3.1 "$@"
