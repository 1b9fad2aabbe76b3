# For the scripts beside it: say NAME's lines on standard error, and tell how long a phase takes while it runs.
# shellcheck shell=bash

say() { echo "${0##*/}: $*" >&2; }

phase() { # phase TEXT COMMAND...: runs the command; its failure is said, and is ours
  local text=$1 started=$SECONDS ticker status=0
  shift
  say "$text"
  tick & ticker=$!
  "$@" || status=$?
  kill "$ticker"
  if ((status)); then
    say "failed: $text"
    return "$status"
  fi
  say "  done in $((SECONDS - started)) s"
}

tick() { # The sleep outlives us by some seconds: it must hold neither a lock (9) nor anybody's pipe.
  while sleep 10 >/dev/null 2>&1 9>&-; do say "  still at it ($((SECONDS - started)) s)"; done
}
