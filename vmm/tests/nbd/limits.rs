//! Clients that misbehave, byte by byte.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::served::{Served, Workshop};

/// Only catches what hangs.
const PATIENCE: Duration = Duration::from_secs(300);

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

fn connect(served: &Served) -> UnixStream {
    let mut client = served.connect();
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting[..8], b"NBDMAGIC");
    client
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A client that has come to transmission the shortest way: NBD_OPT_EXPORT_NAME.
fn begin(served: &Served) -> UnixStream {
    let mut client = connect(served);
    client.write_all(&3u32.to_be_bytes()).expect("sent");
    client.write_all(&option(1, b"")).expect("sent");
    client.read_exact(&mut [0; 10]).expect("size and flags");
    client
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The error code and the cookie of a simple reply.
fn reply(client: &mut UnixStream) -> (u32, u64) {
    let mut bytes = [0; 16];
    client.read_exact(&mut bytes).expect("a reply");
    assert_eq!(bytes[..4], 0x6744_6698u32.to_be_bytes());
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    (word(4), u64::from(word(8)) << 32 | u64::from(word(12)))
}

fn is_closed(client: &mut UnixStream) -> bool {
    matches!(client.read(&mut [0; 64]), Ok(0) | Err(_))
}

#[test]
fn clients_that_break_the_protocol_are_closed_and_others_go_on() {
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve(&["--persistent"]);
    let mut good = begin(&served);
    let mut long = option(7, &[]);
    long[12..16].fill(0xff);
    let flags = 3u32.to_be_bytes();
    for bytes in [
        vec![0xff; 4],
        [&flags[..], &[0; 64]].concat(),
        [&flags[..], &long].concat(),
        [&flags[..], &option(1, b"no such export")].concat(),
    ] {
        let mut client = connect(&served);
        client.write_all(&bytes).expect("sent");
        assert!(is_closed(&mut client), "{bytes:x?}");
    }
    for bytes in [
        vec![0; 28],
        // A write that is longer than any may be.
        request(1, 1, 0, u32::MAX),
    ] {
        let mut client = begin(&served);
        client.write_all(&bytes).expect("sent");
        assert!(is_closed(&mut client), "{bytes:x?}");
    }
    // One that vanishes in the middle of a payload.
    let mut client = begin(&served);
    client.write_all(&request(1, 1, 0, 1 << 20)).expect("sent");
    client.write_all(&[1; 1000]).expect("sent");
    drop(client);
    good.write_all(&request(3, 5, 0, 0)).expect("sent");
    assert_eq!(reply(&mut good), (0, 5));
    drop(good);
    served.end();
    workshop.check();
}

#[test]
fn requests_that_cannot_be_are_answered_with_an_error_and_the_connection_goes_on() {
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve(&["--persistent"]);
    let mut client = begin(&served);
    let cases: [(u16, u64, u32, u32); 6] = [
        (0, 16 << 20, 512, 22),
        (0, 1, 512, 22),
        (0, 0, 33 << 20, 22),
        (1, 16 << 20, 4096, 28),
        (77, 0, 512, 22),
        // Block status without a context.
        (7, 0, 512, 22),
    ];
    for (cookie, (command, offset, length, error)) in cases.into_iter().enumerate() {
        client
            .write_all(&request(command, cookie as u64, offset, length))
            .expect("sent");
        if command == 1 {
            client.write_all(&vec![9; length as usize]).expect("sent");
        }
        assert_eq!(
            reply(&mut client),
            (error, cookie as u64),
            "{command} {offset} {length}"
        );
    }
    drop(client);
    served.end();
}

#[test]
fn a_client_that_asks_for_more_than_it_reads_waits_and_gets_it_all() {
    const REQUESTS: u64 = 400;
    const LENGTH: usize = 1 << 20;
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve(&["--persistent"]);
    let mut client = begin(&served);
    let mut sender = client.try_clone().expect("another handle");
    // 400 MiB are asked for before the first byte is read; the server holds a part of that at a time.
    let asking = std::thread::spawn(move || {
        for cookie in 0..REQUESTS {
            sender
                .write_all(&request(0, cookie, (cookie % 16) << 20, LENGTH as u32))
                .expect("sent");
        }
    });
    // Another client is served meanwhile.
    let mut other = begin(&served);
    other.write_all(&request(3, 1, 0, 0)).expect("sent");
    assert_eq!(reply(&mut other), (0, 1));
    let mut seen = vec![false; REQUESTS as usize];
    let mut data = vec![0; LENGTH];
    for _ in 0..REQUESTS {
        let (error, cookie) = reply(&mut client);
        assert_eq!(error, 0);
        client.read_exact(&mut data).expect("data");
        assert!(!std::mem::replace(&mut seen[cookie as usize], true), "answered twice");
    }
    asking.join().expect("all were sent");
    drop((client, other));
    served.end();
}

#[test]
fn more_clients_than_are_allowed_wait() {
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve(&["--persistent", "--max-clients", "1"]);
    let first = begin(&served);
    let second = served.connect();
    second.set_nonblocking(true).expect("set");
    let waits = (&second).read(&mut [0; 1]).expect_err("nothing to read yet");
    assert_eq!(waits.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    second.set_nonblocking(false).expect("set");
    second.set_read_timeout(Some(PATIENCE)).expect("set");
    (&second).read_exact(&mut [0; 18]).expect("a greeting");
    drop(second);
    served.end();
}

#[test]
fn a_client_that_leaves_is_answered_first() {
    let workshop = Workshop::with_image("16M");
    let served = workshop.serve(&["--persistent"]);
    let mut client = begin(&served);
    // A write, a flush, and goodbye, at once.
    let mut all = request(1, 1, 0, 4096);
    all.extend([8; 4096]);
    all.extend(request(3, 2, 0, 0));
    all.extend(request(2, 3, 0, 0));
    client.write_all(&all).expect("sent");
    let mut answered = [reply(&mut client), reply(&mut client)];
    answered.sort_unstable();
    assert_eq!(answered, [(0, 1), (0, 2)]);
    assert!(is_closed(&mut client));
    served.end();
    workshop.check();
}
