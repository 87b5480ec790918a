# Runs in the Linux guest, on the disk under test: says what it finds there, then goes on writing and says what is durable.
# SUM FILE MD5, DB CHECK ROWS|LAST|WRONG: found. BEGIN FILE [MD5]: may change from now on. ACK FILE MD5, ACK db LAST: durable.
cd /mnt || exit 1
sum() { md5sum <"$1" | cut -c1-32; }
wired() { stty -opost <&1; }
for f in tree/f* fio*; do [ ! -f "$f" ] || echo "SUM $f $(sum "$f")"; done
if [ -f db ]; then
    found=$(sqlite3 db "pragma integrity_check; select count(*), coalesce(max(n), 0), coalesce(sum(h <> replace(hex(zeroblob(300)), '00', printf('%06d', n))), 0) from t;" 2>&1)
    case "$found" in *"no such table"*) found="ok 0|0|0" ;; esac
    echo "DB" $found
fi
dmesg | grep -E 'EXT4-fs (error|warning)|I/O error' && { echo "FAILED: the kernel complains"; exit 9; }
echo WORK
mkdir -p tree
i=0 n=$SEED
while [ "$i" -lt "$ROUNDS" ]; do
    i=$((i + 1)) n=$(((n * 1103515245 + 12345) & 0x7fffffff)) r=$((n / 1024))
    case $((r % 8)) in
    0 | 1 | 2)
        f=tree/f$((r / 8 % 10))
        head -c $((r / 80 % 150000 + 1)) /dev/urandom >tree/new
        s=$(sum tree/new)
        echo "BEGIN $f $s"
        wired
        sync tree/new && mv tree/new "$f" && sync tree && echo "ACK $f $s"
        ;;
    3 | 4 | 5)
        # DELETE journal with EXTRA: the directory is synced when the journal is gone, so that a transaction stays committed.
        {
            echo "create table if not exists t(n integer primary key, h text); pragma synchronous=extra;"
            for transaction in 1 2 3 4; do
                echo "begin immediate; insert into t(n) select coalesce(max(n), 0) + 1 from t; insert into t(n) select max(n) + 1 from t;"
                echo "update t set h = replace(hex(zeroblob(300)), '00', printf('%06d', n)) where h is null; commit;"
                echo "select 'ACK db ' || max(n) from t;"
            done
        } | sqlite3 db || echo "FAILED: sqlite3"
        ;;
    6)
        f=fio$((r / 8 % 4))
        echo "BEGIN $f"
        wired
        fio --name=w --filename="$f" --size=1M --rw=randwrite --bssplit=512/20:4k/40:64k/40 --direct=1 --ioengine=libaio \
            --iodepth=8 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 --verify_state_save=0 --randseed=$n \
            >/run/log 2>&1 || { echo "FAILED: fio"; cat /run/log; }
        sync . && echo "ACK $f $(sum "$f")"
        ;;
    7)
        head -c 3000000 /dev/urandom >large && sync large && rm large && sync . && fstrim /mnt && echo "ACK trim"
        ;;
    esac
done
cd / && umount /mnt
