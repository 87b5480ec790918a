# In the folder of the workload's files, on a Linux guest's disk or in a copy of its files: says what is there.
# FOUND NAME NUMBER ok|damaged: there is that version of it. DB CHECK ROWS|LAST|WRONG: the database.
nl='
'
# A version of a file is its data in data.NAME.NUMBER, and then a manifest with the number and the sum, put in place by rename.
# One md5sum for all: a program takes its time to start in the nested host.
sums="$nl$(md5sum data.* 2>&1)$nl"
for manifest in tree/*; do
    [ -f "$manifest" ] && [ "$manifest" != tree/new ] || continue
    read -r number sum <"$manifest"
    name=${manifest#tree/} state=damaged
    case "$sums" in *"$nl$sum  data.$name.$number$nl"*) state=ok ;; esac
    echo "FOUND $name $number $state"
done
if [ -f db ]; then
    found=$(sqlite3 db "pragma integrity_check; select count(*), coalesce(max(n), 0), coalesce(sum(h is not replace(hex(zeroblob(300)), '00', printf('%06d', n))), 0) from t;" 2>&1)
    case "$found" in *"no such table"*) found="ok 0|0|0" ;; esac
    # In one line; what SQLite says has asterisks in it.
    set -f
    echo "DB" $found
    set +f
fi
