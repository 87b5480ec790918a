# Runs in the Linux guest, on the disk under test: says what it finds there, then goes on writing and says what is durable.
# FOUND NAME NUMBER ok|damaged: there is that version of it. DB CHECK ROWS|LAST|WRONG: the database. ACK NAME NUMBER: durable.
# Nothing that is printed before a change is needed to judge the change: a kill may take the last words with it.
cd /mnt || exit 1
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
    echo "DB" $found
fi
dmesg | grep -E 'EXT4-fs (error|warning)|I/O error' && echo "FAILED: the kernel complains"
echo WORK

# Makes version $number of $name of the data in data.$name.$number.
publish() {
    sync "data.$name.$number" . && sum=$(md5sum "data.$name.$number") && echo "$number ${sum%% *}" >tree/new && sync tree/new &&
        mv tree/new "tree/$name" && sync tree && echo "ACK $name $number" || echo "FAILED: $name"
    for old in data."$name".*; do [ "$old" = "data.$name.$number" ] || rm "$old"; done
}
mkdir -p tree && sync .
i=0 n=$SEED
while [ "$i" -lt "$ROUNDS" ]; do
    i=$((i + 1)) n=$(((n * 1103515245 + 12345) & 0x7fffffff)) r=$((n / 1024))
    case $((r % 8)) in
    0 | 1 | 2) name=f$((r / 8 % 10)) ;;
    6) name=fio$((r / 8 % 4)) ;;
    *) name= ;;
    esac
    number=0
    [ -z "$name" ] || [ ! -f "tree/$name" ] || read -r number _ <"tree/$name"
    number=$((number + 1))
    case $((r % 8)) in
    0 | 1 | 2)
        head -c $((r / 80 % 150000 + 1)) /dev/urandom >"data.$name.$number"
        publish
        ;;
    3 | 4 | 5)
        # DELETE journal with EXTRA: the directory is synced when the journal is gone, so that a transaction stays committed.
        {
            echo "pragma synchronous=extra; create table if not exists t(n integer primary key, h text);"
            for transaction in 1 2 3 4; do
                echo "begin immediate; insert into t(n) select coalesce(max(n), 0) + 1 from t; insert into t(n) select max(n) + 1 from t;"
                echo "update t set h = replace(hex(zeroblob(300)), '00', printf('%06d', n)) where h is null; commit;"
                echo "select 'ACK db ' || max(n) from t;"
            done
        } | sqlite3 db || echo "FAILED: sqlite3"
        ;;
    6)
        fio --name=w --filename="data.$name.$number" --size=1M --rw=randwrite --bssplit=512/20:4k/40:64k/40 --direct=1 \
            --ioengine=libaio --iodepth=8 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 --verify_state_save=0 \
            --randseed=$n >/run/log 2>&1 || { echo "FAILED: fio"; cat /run/log; }
        publish
        ;;
    7)
        head -c 3000000 /dev/urandom >large && sync large && rm large && sync . || echo "FAILED: large"
        # A disk with discard=ignore has no TRIM.
        [ "$(cat "/sys/block/$d/queue/discard_max_bytes")" = 0 ] || fstrim /mnt && echo "ACK trim 0" || echo "FAILED: fstrim"
        ;;
    esac
done
cd / && umount /mnt
