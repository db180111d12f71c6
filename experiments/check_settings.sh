# What drivers in shell source first: --help, and a clear end for wrong settings before any work begins.
# shellcheck shell=bash
wrong() { echo "${0##*/}: error: $*" >&2; exit 2; }

whole() { # NAME, the smallest and the largest number that it may be, values
    local value
    for value in "${@:4}"; do
        [[ $value =~ ^(0|[1-9][0-9]{0,9})$ && $value -ge $2 && $value -le $3 ]] ||
            wrong "$1=$value is not a whole number from $2 to $3"
    done
}

seeds_are() { whole "$1" 0 4294967295 "${@:2}"; } # NAME, values
counts_are() { whole "$1" 1 1000000000 "${@:2}"; } # NAME, values

one_of() { # NAME, the values that there are (in one word), values
    local value
    for value in "${@:3}"; do [[ " $2 " = *" $value "* ]] || wrong "$1 names '$value'; there is: $2"; done
}

once() { # NAME, values
    local twice
    twice=$(printf '%s\n' "${@:2}" | sort | uniq -d | paste -sd ' ')
    [ -z "$twice" ] || wrong "$1 names $twice twice"
}

two_or_more() { # NAME, values
    [ $# -gt 2 ] || wrong "$1 names ${2:-nothing}; students of two kinds or more are compared"
}

case ${1:-} in
'') ;;
-h | --help) sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0" && exit ;;
*) wrong "it takes no arguments (found: $*). Its settings are variables before the command; --help lists them" ;;
esac
