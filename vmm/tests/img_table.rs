//! `spindle img X` against `qemu-img X`: equal results, equal exit codes, JSON equal in every field that both have.

mod img;

use img::images::{DAMAGED, IMAGES};
use img::{Judge, Row, judge_all};

use Judge::{Bench, Code, Json, Text, Writes, WritesSilently};

#[test]
fn images_are_described_as_by_qemu_img() {
    let mut rows = Vec::new();
    let mut add = |arguments: String, judge| {
        // The table lives as long as the test.
        let arguments = Box::leak(arguments.into_boxed_str());
        rows.push(Row { arguments, judge });
    };
    for image in IMAGES {
        add(format!("info {image}"), Text);
        add(format!("info --output=json {image}"), Json);
        add(format!("check {image}"), Text);
        add(format!("check --output=json {image}"), Json);
        add(format!("map {image}"), Text);
        add(format!("map --output=json {image}"), Json);
        add(format!("measure -O qcow2 --output=json {image}"), Json);
    }
    for (image, _) in DAMAGED {
        add(format!("check {image}"), Text);
        add(format!("check --output=json {image}"), Json);
    }
    judge_all(&rows);
}

#[test]
fn commands_that_only_read_agree() {
    judge_all(&[
        row("info --backing-chain top.qcow2", Text),
        row("info --backing-chain --output=json top.qcow2", Json),
        row("info -b overraw.qcow2", Text),
        row("info -U plain.qcow2", Text),
        row("info -f raw plain.qcow2", Text),
        row("info dirty.qcow2", Text),
        row("info corrupt-bit.qcow2", Text),
        row("info --output=json dirty.qcow2", Json),
        row("info", Code),
        row("info nothing.qcow2", Code),
        row("info -f qcow2 raw.img", Code),
        row("info -f nonsense raw.img", Code),
        row("info --output=xml raw.img", Code),
        row("info --nonsense raw.img", Code),
        row("check -q plain.qcow2", Text),
        row("check -q high.qcow2", Text),
        row("check -f raw plain.qcow2", Code),
        row("check -f qcow2 raw.img", Code),
        row("check -T none plain.qcow2", Text),
        row("check -T nonsense plain.qcow2", Code),
        row("check -r nonsense plain.qcow2", Code),
        row("check nothing.qcow2", Code),
        row("check", Code),
        row("check -U plain.qcow2", Text),
        row("map -f raw raw.img", Text),
        row("map -f raw --output=json odd.raw", Json),
        row("map --start-offset=1M plain.qcow2", Text),
        row("map --start-offset=1M --max-length=2M --output=json plain.qcow2", Json),
        row("map -s 100k -l 300k --output=json top.qcow2", Json),
        row("map -U plain.qcow2", Text),
        row("map nothing.qcow2", Code),
        row("map", Code),
        row("measure --size 1G -O qcow2", Text),
        row("measure --size 1G", Text),
        row("measure --size 10T -O qcow2", Text),
        row("measure --size 1000 -O qcow2", Text),
        row("measure --size 0 -O qcow2", Text),
        row("measure --size 3G -O qcow2 -o cluster_size=512", Text),
        row("measure --size 3G -O qcow2 -o cluster_size=2M", Text),
        row("measure --size 3G -O qcow2 -o refcount_bits=64", Text),
        row("measure --size 3G -O qcow2 -o preallocation=full --output=json", Json),
        row(
            "measure --size 3G -O qcow2 -o preallocation=metadata --output=json",
            Json,
        ),
        row("measure -O raw plain.qcow2", Text),
        row("measure -O qcow2 -o cluster_size=4k plain.qcow2", Text),
        row("measure -O qcow2 -l first snap.qcow2", Text),
        row("measure -O qcow2 -l nothing snap.qcow2", Code),
        row("measure", Code),
        row("measure --size 1G plain.qcow2", Code),
        row("measure --size nonsense", Code),
        row("measure -O nonsense --size 1G", Code),
        row("compare plain.qcow2 plain.qcow2", Text),
        row("compare plain.qcow2 comp.qcow2", Text),
        row("compare plain.qcow2 zstd.qcow2", Text),
        row("compare plain.qcow2 v2.qcow2", Text),
        row("compare small.qcow2 large.qcow2", Text),
        row("compare base.qcow2 over.qcow2", Text),
        row("compare -q base.qcow2 over.qcow2", Text),
        row("compare over.qcow2 top.qcow2", Text),
        row("compare -s over.qcow2 top.qcow2", Text),
        row("compare -s plain.qcow2 base.qcow2", Text),
        row("compare -s plain.qcow2 zero.qcow2", Text),
        row("compare -s plain.qcow2 v2.qcow2", Text),
        row("compare base.qcow2 short.qcow2", Text),
        row("compare empty.qcow2 raw.img", Text),
        row("compare -f raw -F raw raw.img odd.raw", Text),
        row("compare -f raw -F qcow2 raw.img overraw.qcow2", Text),
        row("compare empty.qcow2 meta.qcow2", Text),
        row("compare plain.qcow2 nothing.qcow2", Code),
        row("compare plain.qcow2 -F qcow2 raw.img", Code),
        row("snapshot -l snap.qcow2", Text),
        row("snapshot snap.qcow2", Text),
        row("snapshot -l plain.qcow2", Text),
        row("snapshot -l -U snap.qcow2", Text),
        row("snapshot -l raw.img", Text),
        row("snapshot -l nothing.qcow2", Code),
        row("snapshot -l -c name snap.qcow2", Code),
        row("snapshot", Code),
        row("bench -c 100 -f raw raw.img", Bench),
        row("bench -c 100 -d 1 -f qcow2 plain.qcow2", Bench),
        row("bench -c 100 -d 32 -S 64k -s 8k -o 1M -f qcow2 top.qcow2", Bench),
        row("bench -c 50 -w -f qcow2 plain.qcow2", Bench),
        row("bench -c 50 -w -d 4 --flush-interval 8 -f qcow2 plain.qcow2", Bench),
        row(
            "bench -c 50 -w -d 4 --flush-interval 8 --no-drain -q --pattern 7 -f qcow2 plain.qcow2",
            Bench,
        ),
        row("bench -c 50 -w -t none -s 64k -f qcow2 empty.qcow2", Bench),
        row("bench -c 50 -i threads -f qcow2 plain.qcow2", Bench),
        row("bench -c 0 -f raw raw.img", Code),
        row("bench -c 5 -d 0 -f raw raw.img", Code),
        row("bench -c 5 --flush-interval 3 -f raw raw.img", Code),
        row("bench -c 5 --pattern 256 -f raw raw.img", Code),
        row("bench -c 5 -i nonsense -f raw raw.img", Code),
        row("bench -c 5 -t nonsense -f raw raw.img", Code),
        row("bench -c 5 -w -d 16 --flush-interval 3 -f raw raw.img", Code),
        row("bench nothing.qcow2", Code),
        row("nonsense", Code),
        row("--help", Code),
    ]);
}

#[test]
fn new_images_are_alike() {
    judge_all(&[
        row("create -f qcow2 n.qcow2 1G", Writes(&["n.qcow2"])),
        row("create -f qcow2 n.qcow2 1.5G", Writes(&["n.qcow2"])),
        row("create -f qcow2 n.qcow2 1000", WritesSilently(&["n.qcow2"])),
        row("create -f qcow2 n.qcow2 0", Writes(&["n.qcow2"])),
        row("create -f qcow2 n.qcow2 20T", Writes(&["n.qcow2"])),
        row("create -q -f qcow2 plain.qcow2 2M", Writes(&["plain.qcow2"])),
        row("create n.raw 1000", WritesSilently(&["n.raw"])),
        row("create -f raw n.raw 3M", Writes(&["n.raw"])),
        row("create -f raw -o preallocation=full n.raw 1M", Writes(&["n.raw"])),
        row("create -f raw -o preallocation=falloc n.raw 1M", Writes(&["n.raw"])),
        row("create -f qcow2 -o size=3M n.qcow2", Writes(&["n.qcow2"])),
        row("create -f qcow2 -o compat=0.10 n.qcow2 1M", Writes(&["n.qcow2"])),
        row("create -f qcow2 -o compat=v2 n.qcow2 1M", WritesSilently(&["n.qcow2"])),
        row(
            "create -f qcow2 -o compat=1.1,lazy_refcounts=on n.qcow2 1M",
            Writes(&["n.qcow2"]),
        ),
        row("create -f qcow2 -o cluster_size=512 n.qcow2 8M", Writes(&["n.qcow2"])),
        row("create -f qcow2 -o cluster_size=2M n.qcow2 1G", Writes(&["n.qcow2"])),
        row("create -f qcow2 -o refcount_bits=1 n.qcow2 1G", Writes(&["n.qcow2"])),
        row("create -f qcow2 -o refcount_bits=64 n.qcow2 1G", Writes(&["n.qcow2"])),
        row(
            "create -f qcow2 -o compression_type=zstd n.qcow2 1G",
            Writes(&["n.qcow2"]),
        ),
        row(
            "create -f qcow2 -o preallocation=metadata n.qcow2 3M",
            Writes(&["n.qcow2"]),
        ),
        row(
            "create -f qcow2 -o preallocation=falloc n.qcow2 3M",
            Writes(&["n.qcow2"]),
        ),
        row(
            "create -f qcow2 -o preallocation=full,cluster_size=4k n.qcow2 3M",
            Writes(&["n.qcow2"]),
        ),
        row("create -f qcow2 -b base.qcow2 -F qcow2 n.qcow2", Writes(&["n.qcow2"])),
        row(
            "create -f qcow2 -b base.qcow2 -F qcow2 n.qcow2 100M",
            Writes(&["n.qcow2"]),
        ),
        row(
            "create -f qcow2 -o backing_file=raw.img,backing_fmt=raw n.qcow2",
            Writes(&["n.qcow2"]),
        ),
        row("create -f qcow2 -u -b nothing.qcow2 -F qcow2 n.qcow2 1M", Code),
        row("create -f qcow2 -b nothing.qcow2 -F qcow2 n.qcow2 1M", Code),
        row("create -f qcow2 -b base.qcow2 n.qcow2", Code),
        row("create -f qcow2 -u -b nothing.qcow2 -F qcow2 n.qcow2", Code),
        row("create -f raw -b raw.img n.raw", Code),
        row("create -f qcow2 n.qcow2", Code),
        row("create -f qcow2 n.qcow2 nonsense", Code),
        row("create -f qcow2 n.qcow2 9E", Code),
        row("create -f qcow2 n.qcow2 -- -1", Code),
        row("create -f nonsense n.qcow2 1M", Code),
        row("create -f qcow2 -o nonsense=1 n.qcow2 1M", Code),
        row("create -f qcow2 -o cluster_size=100 n.qcow2 1M", Code),
        row("create -f qcow2 -o cluster_size=4M n.qcow2 1M", Code),
        row("create -f qcow2 -o refcount_bits=3 n.qcow2 1M", Code),
        row("create -f qcow2 -o compat=0.10,lazy_refcounts=on n.qcow2 1M", Code),
        row("create -f qcow2 -o compat=0.10,refcount_bits=8 n.qcow2 1M", Code),
        row("create -f qcow2 -o compat=nonsense n.qcow2 1M", Code),
        row("create -f qcow2 -o compression_type=lz4 n.qcow2 1M", Code),
        row(
            "create -f qcow2 -o preallocation=metadata -b base.qcow2 -F qcow2 n.qcow2",
            Code,
        ),
        row("create -f raw -o preallocation=metadata n.raw 1M", Code),
        row("create -f qcow2 -o cluster_size=512 n.qcow2 1T", Code),
        row("create -f qcow2 nowhere/n.qcow2 1M", Code),
        row("create -f qcow2 -o help", Code),
        row("create", Code),
    ]);
}

#[test]
fn copies_are_alike() {
    const N: Judge = Writes(&["n.qcow2"]);
    const R: Judge = Writes(&["n.raw"]);
    judge_all(&[
        row("convert -O qcow2 plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 raw.img n.qcow2", N),
        row("convert -f raw -O qcow2 odd.raw n.qcow2", N),
        row("convert -O qcow2 empty.qcow2 n.qcow2", N),
        row("convert -O qcow2 zero.qcow2 n.qcow2", N),
        row("convert -O qcow2 meta.qcow2 n.qcow2", N),
        row("convert -O qcow2 top.qcow2 n.qcow2", N),
        row("convert -O qcow2 comp.qcow2 n.qcow2", N),
        row("convert -O qcow2 zstd.qcow2 n.qcow2", N),
        row("convert -O qcow2 -o cluster_size=512 plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 -o cluster_size=2M small.qcow2 n.qcow2", N),
        row("convert -O qcow2 -o refcount_bits=1 plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 -o compat=0.10 plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 -o lazy_refcounts=on plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 -W -m 16 plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 -m 1 plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 -S 0 base.qcow2 n.qcow2", N),
        row("convert -O qcow2 -S 64k plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 -o preallocation=metadata raw.img n.qcow2", N),
        row("convert -O qcow2 -o preallocation=full raw.img n.qcow2", N),
        row("convert -c -O qcow2 plain.qcow2 n.qcow2", N),
        row("convert -c -O qcow2 -o compression_type=zstd plain.qcow2 n.qcow2", N),
        row("convert -c -O qcow2 -o cluster_size=4k plain.qcow2 n.qcow2", N),
        row("convert -c -O qcow2 -o cluster_size=2M top.qcow2 n.qcow2", N),
        row("convert -c -W -O qcow2 -f raw odd.raw n.qcow2", N),
        row("convert -c -O qcow2 -o refcount_bits=1 plain.qcow2 n.qcow2", N),
        row("convert -O raw plain.qcow2 n.raw", R),
        row("convert plain.qcow2 n.raw", R),
        row("convert -O raw top.qcow2 n.raw", R),
        row("convert -O raw -S 0 raw.img n.raw", R),
        row("convert -O raw -f raw odd.raw n.raw", R),
        row("convert -O raw -o preallocation=falloc raw.img n.raw", R),
        row("convert -O raw plain.qcow2 raw.img odd.raw n.raw", R),
        row("convert -O qcow2 plain.qcow2 raw.img n.qcow2", N),
        row("convert -O qcow2 -l first snap.qcow2 n.qcow2", N),
        row("convert -O qcow2 -l snapshot.name=second snap.qcow2 n.qcow2", N),
        row("convert -O raw -l snapshot.id=1 snap.qcow2 n.raw", R),
        row("convert -O qcow2 -B base.qcow2 -F qcow2 over.qcow2 n.qcow2", N),
        row("convert -O qcow2 -B over.qcow2 -F qcow2 top.qcow2 n.qcow2", N),
        row("convert -c -O qcow2 -B over.qcow2 -F qcow2 top.qcow2 n.qcow2", N),
        row(
            "convert -O qcow2 -o backing_file=raw.img,backing_fmt=raw overraw.qcow2 n.qcow2",
            N,
        ),
        row(
            "convert -O qcow2 -o cluster_size=512 -B over.qcow2 -F qcow2 top.qcow2 n.qcow2",
            N,
        ),
        row("convert -n -O qcow2 plain.qcow2 empty.qcow2", Writes(&["empty.qcow2"])),
        row("convert -n -O qcow2 plain.qcow2 zero.qcow2", Writes(&["zero.qcow2"])),
        row(
            "convert -n -O qcow2 --target-is-zero plain.qcow2 empty.qcow2",
            Writes(&["empty.qcow2"]),
        ),
        row("convert -n -t writeback -O raw overraw.qcow2 raw.img", Code),
        row("convert -n -O raw meta.qcow2 raw.img", Writes(&["raw.img"])),
        row("convert -t none -T writeback -O qcow2 plain.qcow2 n.qcow2", N),
        row("convert -U -q -O qcow2 plain.qcow2 n.qcow2", N),
        row("convert -O qcow2 plain.qcow2 comp.qcow2", Writes(&["comp.qcow2"])),
        row("convert -O raw nothing.qcow2 n.raw", Writes(&["n.raw"])),
        row("convert -O raw plain.qcow2", Code),
        row("convert", Code),
        row("convert -c -O raw plain.qcow2 n.raw", Writes(&["n.raw"])),
        row("convert -n -O raw plain.qcow2 raw.img", Writes(&["raw.img"])),
        row("convert -n -O raw plain.qcow2 nothing.raw", Writes(&["nothing.raw"])),
        row("convert --target-is-zero -O qcow2 plain.qcow2 n.qcow2", Code),
        row("convert -m 0 -O qcow2 plain.qcow2 n.qcow2", Code),
        row("convert -m 17 -O qcow2 plain.qcow2 n.qcow2", Code),
        row("convert -S 1 -O qcow2 plain.qcow2 n.qcow2", Code),
        row("convert -S 1G -O qcow2 plain.qcow2 n.qcow2", Code),
        row("convert -l nothing -O qcow2 snap.qcow2 n.qcow2", Code),
        row("convert -O qcow2 -B base.qcow2 over.qcow2 n.qcow2", Code),
        row("convert -O qcow2 -B nothing.qcow2 -F qcow2 over.qcow2 n.qcow2", Code),
        row("convert -O nonsense plain.qcow2 n.qcow2", Code),
        row("convert -O qcow2 -o nonsense=1 plain.qcow2 n.qcow2", Code),
        row("convert -O qcow2 -o help", Code),
        row("dd if=plain.qcow2 of=n.raw", R),
        row("dd if=plain.qcow2 of=n.raw bs=64k count=3 skip=1", R),
        row("dd -O qcow2 if=raw.img of=n.qcow2 bs=1M", N),
        row("dd -f raw if=odd.raw of=n.raw bs=700 count=3", R),
        row("dd -f raw -O qcow2 if=raw.img of=n.qcow2 bs=64k skip=5", N),
        row("dd if=raw.img of=n.raw bs=64k skip=1000", R),
        row("dd if=top.qcow2 of=n.raw bs=1M count=2", R),
        row("dd if=raw.img", Code),
        row("dd if=raw.img of=n.raw nonsense=2", Code),
        row("dd if=raw.img of=n.raw bs=0", Code),
        row("dd if=raw.img of=n.raw bs=nonsense", Code),
        row("dd if=nothing.raw of=n.raw", Code),
    ]);
}

#[test]
fn changes_are_alike() {
    judge_all(&[
        row("resize plain.qcow2 50M", Writes(&["plain.qcow2"])),
        row("resize plain.qcow2 +1M", Writes(&["plain.qcow2"])),
        row("resize -q plain.qcow2 1G", Writes(&["plain.qcow2"])),
        row("resize --shrink plain.qcow2 1M", Writes(&["plain.qcow2"])),
        row("resize --shrink plain.qcow2 -20M", Writes(&["plain.qcow2"])),
        row("resize --shrink small.qcow2 100k", Writes(&["small.qcow2"])),
        row("resize snap.qcow2 +20M", Writes(&["snap.qcow2"])),
        row("resize short.qcow2 36M", Writes(&["short.qcow2"])),
        row("resize -f raw raw.img 2M", Writes(&["raw.img"])),
        row("resize -f raw --shrink raw.img 513k", Writes(&["raw.img"])),
        row("resize -f raw --preallocation=full raw.img 2M", Writes(&["raw.img"])),
        row("resize plain.qcow2 1M", Writes(&["plain.qcow2"])),
        row("resize --shrink plain.qcow2 -80M", Code),
        row("resize plain.qcow2", Code),
        row("resize plain.qcow2 nonsense", Code),
        row("resize nothing.qcow2 1G", Code),
        row("resize --preallocation=nonsense plain.qcow2 1G", Code),
        row("snapshot -c third snap.qcow2", Writes(&["snap.qcow2"])),
        row("snapshot -c name plain.qcow2", Writes(&["plain.qcow2"])),
        row("snapshot -a first snap.qcow2", Writes(&["snap.qcow2"])),
        row("snapshot -d first snap.qcow2", Writes(&["snap.qcow2"])),
        row("snapshot -d 2 snap.qcow2", Writes(&["snap.qcow2"])),
        row("snapshot -q -a second snap.qcow2", Writes(&["snap.qcow2"])),
        row("snapshot -c name over.qcow2", Writes(&["over.qcow2"])),
        row("snapshot -a nothing snap.qcow2", Code),
        row("snapshot -d nothing snap.qcow2", Code),
        row("snapshot -c name raw.img", Code),
        row("rebase -b empty.qcow2 -F qcow2 over.qcow2", Writes(&["over.qcow2"])),
        row("rebase -b '' over.qcow2", Writes(&["over.qcow2"])),
        row("rebase -b base.qcow2 -F qcow2 top.qcow2", Writes(&["top.qcow2"])),
        row("rebase -b raw.img -F raw top.qcow2", Writes(&["top.qcow2"])),
        row("rebase -b over.qcow2 -F qcow2 plain.qcow2", Writes(&["plain.qcow2"])),
        row("rebase -u -b plain.qcow2 -F qcow2 over.qcow2", Writes(&["over.qcow2"])),
        row("rebase -u -b '' over.qcow2", Writes(&["over.qcow2"])),
        row("rebase -u -b raw.img -F raw plain.qcow2", Writes(&["plain.qcow2"])),
        row("rebase -u -b nothing.qcow2 -F qcow2 over.qcow2", Code),
        row("rebase -b nothing.qcow2 -F qcow2 over.qcow2", Code),
        row("rebase -b plain.qcow2 over.qcow2", Code),
        row("rebase -b raw.img -F nonsense over.qcow2", Code),
        row("rebase over.qcow2", Code),
        row("rebase -b base.qcow2 -F qcow2 nothing.qcow2", Code),
        row("commit over.qcow2", Writes(&["over.qcow2", "base.qcow2"])),
        row("commit -d over.qcow2", Writes(&["over.qcow2", "base.qcow2"])),
        row("commit -q top.qcow2", Writes(&["over.qcow2", "top.qcow2"])),
        row("commit -b base.qcow2 top.qcow2", Writes(&["base.qcow2"])),
        row("commit -d overraw.qcow2", Writes(&["overraw.qcow2", "raw.img"])),
        row("commit -t none over.qcow2", Writes(&["over.qcow2", "base.qcow2"])),
        row("commit base.qcow2", Code),
        row("commit -b nothing.qcow2 top.qcow2", Code),
        row("commit nothing.qcow2", Code),
    ]);
}

#[test]
fn repairs_are_alike() {
    judge_all(&[
        row("check -r leaks plain.qcow2", Writes(&["plain.qcow2"])),
        row("check -r all snap.qcow2", Writes(&["snap.qcow2"])),
        row("check -r leaks leak.qcow2", Writes(&["leak.qcow2"])),
        row("check -r all leak.qcow2", Writes(&["leak.qcow2"])),
        row("check -r all --output=json leak.qcow2", Writes(&["leak.qcow2"])),
        row("check -r leaks high.qcow2", Writes(&["high.qcow2"])),
        row("check -r all --output=json high.qcow2", Writes(&["high.qcow2"])),
        row("check -r all higher.qcow2", Writes(&["higher.qcow2"])),
        row("check -r all nocopied.qcow2", Writes(&["nocopied.qcow2"])),
        row("check -r leaks nocopied.qcow2", Writes(&["nocopied.qcow2"])),
        row("check -r all nocopied-l1.qcow2", Writes(&["nocopied-l1.qcow2"])),
        row("check -r all twice.qcow2", Writes(&["twice.qcow2"])),
        row("check -r all --output=json twice.qcow2", Writes(&["twice.qcow2"])),
        row("check -r all low.qcow2", WritesSilently(&["low.qcow2"])),
        row("check -r all no-block.qcow2", WritesSilently(&["no-block.qcow2"])),
        row(
            "check -r all block-beyond.qcow2",
            WritesSilently(&["block-beyond.qcow2"]),
        ),
        row("check -r all on-l1.qcow2", WritesSilently(&[])),
        row("check -r all beyond.qcow2", Code),
        row("check -r all dirty.qcow2", Writes(&["dirty.qcow2"])),
        row("check -r all corrupt-bit.qcow2", Writes(&["corrupt-bit.qcow2"])),
        row("check -r all -q high.qcow2", Writes(&["high.qcow2"])),
        row("check -r all raw.img", Code),
    ]);
}

fn row(arguments: &'static str, judge: Judge) -> Row {
    Row { arguments, judge }
}
