#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# readonly_units.sh running|bootc: the state of systemd, and of the units that bootc ships.
PATH=${TMT_SCRIPTS_DIR:-/var/lib/tmt/scripts}:$PATH
status=0

report() {
    echo "$2 $1"
    tmt-report-result "$1" "$2" || exit 2
    [ "$2" != fail ] || status=1
}

case $1 in
    running)
        state=$(timeout 120 systemctl is-system-running --wait)
        failed=$(systemctl list-units --failed --no-legend --plain | cut -d' ' -f1)
        echo "state: $state"
        for unit in $failed; do
            systemctl status --no-pager --full "$unit"
        done
        if [ -z "$failed" ]; then report no-failed-unit pass; else report no-failed-unit fail; fi
        if [ "$state" = running ]; then report state pass; else report state fail; fi
        ;;
    bootc)
        units=$(systemctl list-unit-files --no-legend 'bootc-*' | cut -d' ' -f1)
        [ -n "$units" ] || report "this image ships no bootc unit" skip
        for unit in $units; do
            eval "$(systemctl show -p LoadState -p ActiveState "$unit")"
            echo "$unit: $LoadState, $ActiveState"
            case $LoadState/$ActiveState in
                loaded/failed | bad-setting/* | error/* | not-found/*)
                    systemctl status --no-pager --full "$unit"
                    report "$unit" fail
                    ;;
                *) report "$unit" pass ;;
            esac
        done
        ;;
    *)
        echo "usage: $0 running|bootc" >&2
        exit 2
        ;;
esac
exit $status
