#!/bin/sh
# The main job once, with real data: the data files of the Python package vega_datasets become a bundle; a script that knows nothing
# of bundles gets them as a directory; what it wrote becomes another bundle.  make demo
set -eu
cd "$(dirname "$0")/.."
BIN=$PWD/.venv/bin
PATH=$BIN:$PATH
WORK=build/demo
rm -rf "$WORK"
mkdir -p "$WORK"
SIDECAR_STORE=file://$PWD/$WORK/store
export SIDECAR_STORE MPLCONFIGDIR="$PWD/$WORK/matplotlib"

show() {
    printf '\n$'
    for word; do
        case $word in
        *[!A-Za-z0-9_./:@-]* | '') printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

DATA=$(python3 -c 'import os, vega_datasets; print(os.path.relpath(os.path.dirname(vega_datasets.__file__) + "/_data"))')
show sidecar bundle upload "$DATA" --repo vega --label latest --message "the data files of vega_datasets"
show sidecar run -c "$WORK/coordination" --source "vega@latest:$WORK/in" --dest "$WORK/out:days@demo" \
    --message "how the temperature of a day goes" -- python3 demo/analyse.py "$WORK/in" "$WORK/out"
show sidecar status "$WORK/coordination" --events
show sidecar bundle show days@demo
show sidecar bundle files days@demo
show sidecar bundle download days@demo "$WORK/again"
show cmp "$WORK/out/months.csv" "$WORK/again/months.csv"
printf '\nThe picture: %s\n' "$WORK/again/days.png"
