#!/bin/sh
exec php8.2 "$@"
