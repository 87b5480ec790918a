# Runs in the Linux guest, on the disk under test, behind linux-look.sh: goes on writing and says what is durable.
# ACK NAME NUMBER: that version of it is.
# Nothing that is printed before a change is needed to judge the change: a kill may take the last words with it.
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
