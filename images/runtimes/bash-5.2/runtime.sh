#!/bin/sh
exec bash "$@"
