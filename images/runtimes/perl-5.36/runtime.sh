#!/bin/sh
exec perl "$@"
