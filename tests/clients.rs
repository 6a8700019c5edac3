//! Clients written by others use a replicated volume as they would any disk, and the rules of NBD hold one by one.

mod support;

use std::fs;
use std::path::Path;

use support::nbd::{
    self, CMD_BLOCK_STATUS, CMD_CACHE, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, Chunk,
    Client, Dialect, EINVAL, ENOSPC, FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE,
    FLAG_PAYLOAD_LEN, FLAG_REQ_ONE, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST,
    OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_INVALID,
    REP_ERR_UNKNOWN, REP_INFO, REP_META_CONTEXT, REP_SERVER, name_and,
};
use support::tools::{command, root_or_skip};
use support::{Dice, MIB, Pair, Setup, assert_same_bytes, fio, need, run};

fn pair() -> Pair {
    Pair::start(Setup::default())
}

/// An image with data, holes and an odd end of its data.
fn image(path: &Path, size: u64) {
    let mut dice = Dice::new(5);
    let mut content = vec![0u8; size as usize];
    for piece in content.chunks_mut(MIB as usize).step_by(3) {
        let len = piece.len() - dice.below(5000) as usize;
        piece[..len].fill_with(|| dice.roll() as u8);
    }
    fs::write(path, content).unwrap();
}

#[test]
fn fio_reads_back_what_it_wrote_at_depth_32_in_all_sizes_with_trims_and_the_homes_are_equal() {
    need(&["fio"]);
    let mut pair = pair();
    run(&mut fio::write_and_verify(
        pair.scratch(),
        &pair.clichy.uri(),
    ));
    run(&mut fio::verify_again(
        pair.scratch(),
        &pair.clichy.tcp_uri(),
    ));
    pair.stop_and_compare();
}

#[test]
fn fio_reads_back_what_it_wrote_through_a_compressed_journal() {
    need(&["fio"]);
    for lines in ["compress = \"lz4\"", "compress = \"auto\""] {
        let mut pair = Pair::start(Setup {
            group_lines: lines,
            ..Setup::default()
        });
        let uri = pair.clichy.uri();
        run(&mut fio::write_and_verify(pair.scratch(), &uri));
        let squeezable = "[global]\nioengine=nbd\nuri=${URI}\niodepth=32\nverify=crc32c\n[a]\nrw=randwrite\nsize=32M\n\
            bsrange=4k-256k\nbuffer_compress_percentage=70\nrefill_buffers=1\n";
        run(&mut fio::job(pair.scratch(), &uri, squeezable, &[]));
        pair.stop_and_compare();
    }
}

#[test]
fn nbdcopy_brings_an_image_in_and_out_unchanged_and_the_holes_stay_holes() {
    need(&["nbdcopy"]);
    let mut pair = pair();
    let (before, after) = (pair.scratch().join("before"), pair.scratch().join("after"));
    image(&before, pair.setup.size);
    run(command("nbdcopy")
        .arg("--flush")
        .arg(&before)
        .arg(pair.clichy.uri()));
    run(command("nbdcopy").arg(pair.clichy.uri()).arg(&after));
    assert_same_bytes(&before, &after);
    pair.stop_and_compare();
    assert_same_bytes(&before, &pair.chelles.home());
    for home in [pair.clichy.home(), pair.chelles.home()] {
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&home).unwrap());
        assert!(
            blocks * 512 < pair.setup.size * 2 / 3,
            "{} uses {} bytes",
            home.display(),
            blocks * 512
        );
    }
}

#[test]
fn nbdinfo_describes_the_export_alike_over_tcp_and_unix_sockets() {
    need(&["nbdinfo"]);
    let pair = pair();
    for uri in [pair.clichy.uri(), pair.clichy.tcp_uri()] {
        let text = run(command("nbdinfo").args(["--json", &uri]));
        let info: serde_json::Value = serde_json::from_str(&text).unwrap();
        let export = &info["exports"][0];
        assert_eq!(info["protocol"], "newstyle-fixed", "{text}");
        assert_eq!(info["structured"], true, "{text}");
        assert_eq!(export["export-name"], "demo");
        assert_eq!(export["export-size"], pair.setup.size);
        for able in [
            "can_cache",
            "can_df",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
        ] {
            assert_eq!(export[able], true, "{able}: {text}");
        }
        assert_eq!(export["is_read_only"], false, "{text}");
        assert_eq!(export["block_size_minimum"], 1, "{text}");
        assert_eq!(export["block_size_preferred"], 4096, "{text}");
        assert!(
            export["block_size_maximum"].as_u64().unwrap() >= 32 * MIB,
            "{text}"
        );
        assert_eq!(
            export["contexts"],
            serde_json::json!(["base:allocation"]),
            "{text}"
        );
    }
    let text = run(command("nbdinfo")
        .args(["--list", "--json"])
        .arg(format!("nbd://{}", pair.clichy.nbd)));
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["exports"].as_array().unwrap().len(), 1, "{text}");
    assert_eq!(list["exports"][0]["export-name"], "demo");
}

#[test]
fn nbdinfo_maps_holes_where_nothing_was_written_and_where_it_was_trimmed_at_once() {
    need(&["nbdinfo"]);
    let pair = pair();
    let mut client = Client::attach(&pair.clichy.target(), "demo", Dialect::Structured).unwrap();
    client.write(0, 8 * MIB, &vec![7; MIB as usize]).unwrap();
    client.write(0, 16 * MIB, &vec![7; MIB as usize]).unwrap();
    assert_eq!(client.call(CMD_TRIM, 0, 16 * MIB, MIB).unwrap().errno, 0);
    let text = run(command("nbdinfo").args(["--map", "--json", &pair.clichy.uri()]));
    let map: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut merged: Vec<(u64, u64, u64)> = Vec::new();
    for extent in &map {
        let get = |key: &str| extent[key].as_u64().unwrap();
        match merged.last_mut() {
            Some((_, len, kind)) if *kind == get("type") => *len += get("length"),
            _ => merged.push((get("offset"), get("length"), get("type"))),
        }
    }
    let (hole, data, end) = (3, 0, pair.setup.size);
    assert_eq!(
        merged,
        [
            (0, 8 * MIB, hole),
            (8 * MIB, MIB, data),
            (9 * MIB, end - 9 * MIB, hole)
        ],
        "{text}"
    );
}

#[test]
fn qemu_img_converts_compares_and_maps_the_export() {
    need(&["qemu-img"]);
    let mut pair = pair();
    let (before, after) = (pair.scratch().join("before"), pair.scratch().join("after"));
    image(&before, pair.setup.size);
    let uri = pair.clichy.uri();
    let qemu_img = || command("qemu-img");
    run(qemu_img()
        .args(["convert", "-n", "-f", "raw", "-O", "raw"])
        .arg(&before)
        .arg(&uri));
    run(qemu_img()
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(&before)
        .arg(&uri));
    run(qemu_img()
        .args(["convert", "-f", "raw", "-O", "qcow2", &uri])
        .arg(&after));
    run(qemu_img()
        .args(["compare", "-f", "raw", "-F", "qcow2"])
        .arg(&before)
        .arg(&after));
    let text = run(qemu_img().args(["map", "-f", "raw", "--output=json", &uri]));
    let map: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let data: u64 = map
        .iter()
        .filter(|e| e["data"] == true)
        .map(|e| e["length"].as_u64().unwrap())
        .sum();
    assert!(data > 0 && data < pair.setup.size * 2 / 3, "{text}");
    pair.stop_and_compare();
}

/// Runs a script in which `h` is connected to the primary and `another()` makes one more connection.
fn nbdsh(pair: &Pair, script: &str) {
    let prelude = "import nbd, sys, errno\n\
        def another(df=True):\n    \
            c = nbd.NBD()\n    \
            c.set_strict_mode(0)\n    \
            c.add_meta_context('base:allocation')\n    \
            c.connect_uri(sys.argv[1])\n    \
            return c\n\
        def fails(number, what, *words, **named):\n    \
            try:\n        \
                what(*words, **named)\n    \
            except nbd.Error as e:\n        \
                assert e.errnum == number, (e.errnum, e.string)\n    \
            else:\n        \
                raise AssertionError('no error')\n\
        h = another()\nsize = h.get_size()\n";
    let file = pair.scratch().join("script.py");
    fs::write(&file, format!("{prelude}{script}\n")).unwrap();
    // Debian's python3-libnbd belongs to Debian's python3, whichever comes first in PATH.
    assert!(
        command("/usr/bin/python3")
            .args(["-c", "import nbd"])
            .status()
            .is_ok_and(|s| s.success()),
        "this test needs python3-libnbd; `tools/install-test-deps` installs all that is needed"
    );
    run(command("/usr/bin/python3")
        .arg(&file)
        .arg(pair.clichy.uri()));
}

#[test]
fn fua_is_accepted_on_every_kind_of_change_and_the_content_is_there() {
    let mut pair = pair();
    nbdsh(
        &pair,
        r"
assert h.can_fua()
h.pwrite(b'x' * 8192, 4096, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_FUA)
h.pwrite(b'y' * 512, 65536, nbd.CMD_FLAG_FUA)
h.trim(512, 65536, nbd.CMD_FLAG_FUA)
assert h.pread(12288, 0) == bytearray(8192) + b'x' * 4096
assert h.pread(512, 65536) == bytearray(512)
",
    );
    // Durable means there after a kill of both.
    pair.clichy.kill();
    pair.chelles.kill();
    pair.start_both();
    nbdsh(
        &pair,
        "assert h.pread(12288, 0) == bytearray(8192) + b'x' * 4096",
    );
}

#[test]
fn a_read_with_df_comes_in_one_chunk_and_one_without_sends_holes_as_holes() {
    nbdsh(
        &pair(),
        r"
assert h.can_df()
h.pwrite(b'a' * 4096, 8192)
h.pwrite(b'b' * 4096, 32768)
def chunks(flags):
    got = []
    def chunk(data, offset, status, err):
        got.append((offset, len(data), status))
    content = h.pread_structured(65536, 0, chunk, flags)
    return content, got
whole, one = chunks(nbd.CMD_FLAG_DF)
assert len(one) == 1 and one[0] == (0, 65536, nbd.READ_DATA), one
pieces, many = chunks(0)
assert pieces == whole
assert whole[8192:12288] == b'a' * 4096 and whole[32768:36864] == b'b' * 4096
assert any(status == nbd.READ_HOLE for _, _, status in many), many
assert sum(length for _, length, status in many if status == nbd.READ_DATA) < 65536, many
",
    );
}

#[test]
fn requests_of_length_zero_succeed_or_are_refused_and_never_disconnect() {
    nbdsh(
        &pair(),
        r"
def quietly(what, *words):
    try:
        what(*words)
    except nbd.Error as e:
        assert e.errnum in (errno.EINVAL, errno.ENOSPC), e.string
quietly(h.pread, 0, 0)
quietly(h.pwrite, b'', 0)
quietly(h.pwrite, b'', size)
quietly(h.trim, 0, 512)
quietly(h.zero, 0, 512)
quietly(h.cache, 0, 0)
quietly(h.block_status, 0, 0, lambda *a: 0)
h.pwrite(b'still here', 0)
assert h.pread(10, 0) == b'still here'
",
    );
}

#[test]
fn out_of_range_gets_its_error_and_the_connection_goes_on() {
    nbdsh(
        &pair(),
        r"
for offset, length in [(size, 512), (size - 256, 512), (2**63 - 512, 512), (2**64 - 512, 4096), (2**64 - 1, 1)]:
    fails(errno.EINVAL, h.pread, length, offset)
    fails(errno.ENOSPC, h.pwrite, b'z' * length, offset)
    fails(errno.EINVAL, h.trim, length, offset)
    fails(errno.ENOSPC, h.zero, length, offset)
    fails(errno.EINVAL, h.block_status, length, offset, lambda *a: 0)
assert h.pread(512, size - 512) == bytearray(512)
",
    );
}

#[test]
fn any_offset_and_length_will_do() {
    let mut pair = pair();
    nbdsh(
        &pair,
        r"
import random
random.seed(3)
model = bytearray(1 << 20)
for step in range(400):
    offset = random.randrange(0, 1 << 20)
    length = random.choice([1, 2, 511, 513, 4095, 4097, 70001])
    length = min(length, (1 << 20) - offset)
    kind = random.randrange(4)
    if kind == 0:
        h.zero(length, offset)
        model[offset:offset + length] = bytes(length)
    elif kind == 1:
        h.trim(length, offset)
        model[offset:offset + length] = bytes(length)
    else:
        data = random.randbytes(length)
        h.pwrite(data, offset)
        model[offset:offset + length] = data
    at = random.randrange(0, 1 << 20)
    length = min(random.choice([1, 513, 4096, 99999]), (1 << 20) - at)
    assert h.pread(length, at) == model[at:at + length], step
assert h.pread(1 << 20, 0) == model
",
    );
    pair.stop_and_compare();
}

#[test]
fn a_write_answered_on_one_connection_is_seen_and_flushed_on_every_other() {
    let mut pair = pair();
    nbdsh(
        &pair,
        r"
assert h.can_multi_conn()
others = [another() for _ in range(8)]
for step in range(200):
    writer, reader = others[step % 8], others[(step + 3) % 8]
    data = bytes([step % 256]) * 4096
    writer.pwrite(data, step * 4096)
    assert reader.pread(4096, step * 4096) == data, step
    if step % 10 == 0:
        h.flush()
h.flush()
",
    );
    for site in [&mut pair.clichy, &mut pair.chelles] {
        site.kill();
    }
    pair.start_both();
    nbdsh(
        &pair,
        "for step in range(200): assert h.pread(4096, step * 4096) == bytes([step % 256]) * 4096, step",
    );
}

#[test]
fn zeroes_fast_zeroes_and_kept_zeroes_read_as_zeroes_and_only_kept_ones_stay_allocated() {
    let mut pair = pair();
    nbdsh(
        &pair,
        r"
h.pwrite(b'1' * 65536, 0)
h.pwrite(b'2' * 65536, 1 << 20)
h.pwrite(b'3' * 65536, 2 << 20)
h.zero(65536, 0)
h.zero(65536, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
try:
    h.zero(65536, 2 << 20, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(65536, 2 << 20) == bytearray(65536)
except nbd.Error as e:
    assert e.errnum == errno.ENOTSUP, e.string
    assert h.pread(65536, 2 << 20) == b'3' * 65536
assert h.pread(65536, 0) == bytearray(65536)
assert h.pread(65536, 1 << 20) == bytearray(65536)
def extents(offset):
    got = []
    def gather(context, at, entries, err):
        if context == 'base:allocation':
            got.extend(zip(entries[::2], entries[1::2]))
    h.block_status(65536, offset, gather, nbd.CMD_FLAG_REQ_ONE)
    assert len(got) == 1 and 0 < got[0][0] <= 65536, got
    return got[0]
assert extents(0) == (65536, nbd.STATE_HOLE | nbd.STATE_ZERO), extents(0)
",
    );
    pair.stop_both();
    for home in [pair.clichy.home(), pair.chelles.home()] {
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&home).unwrap());
        assert!(
            blocks * 512 >= 65536,
            "{}: the kept zeroes occupy {} bytes",
            home.display(),
            blocks * 512
        );
    }
}

#[test]
fn requests_of_32_mebibytes_are_accepted_and_dataless_ones_may_be_longer() {
    let mut pair = pair();
    nbdsh(
        &pair,
        r"
import random
data = random.Random(1).randbytes(32 << 20)
h.pwrite(data, 1)
assert h.pread(32 << 20, 1) == data
h.trim(size - 4096, 4096)
assert h.pread(4096, 0) == bytes(1) + data[:4095]
h.zero(size, 0)
assert h.pread(32 << 20, 0) == bytearray(32 << 20)
",
    );
    pair.stop_and_compare();
}

#[test]
fn structured_errors_carry_a_text_that_says_what_was_wrong() {
    let pair = pair();
    for dialect in [Dialect::Structured, Dialect::Extended] {
        let mut client = Client::attach(&pair.clichy.target(), "demo", dialect).unwrap();
        let size = pair.setup.size;
        let answers = [
            client.call(CMD_READ, 0, size, 512).unwrap(),
            client.call(CMD_TRIM, 0, size, 512).unwrap(),
            client.call(CMD_WRITE_ZEROES, 0, size - 1, 512).unwrap(),
            client.call(99, 0, 0, 512).unwrap(),
            client.call(CMD_READ, FLAG_REQ_ONE, 0, 512).unwrap(),
        ];
        let errors: Vec<u32> = answers.iter().map(|a| a.errno).collect();
        assert_eq!(
            errors,
            [EINVAL, EINVAL, ENOSPC, EINVAL, EINVAL],
            "{dialect:?}"
        );
        for answer in answers {
            assert!(answer.text().len() > 5, "{dialect:?}: {answer:?}");
        }
    }
}

#[test]
fn simple_replies_serve_clients_that_negotiate_nothing() {
    let pair = pair();
    let mut client = Client::attach(&pair.clichy.target(), "demo", Dialect::Simple).unwrap();
    client.write(FLAG_FUA, 777, b"plain").unwrap();
    client.flush().unwrap();
    assert_eq!(client.read(776, 7).unwrap(), b"\0plain\0");
    assert_eq!(
        client.call(CMD_READ, 0, pair.setup.size, 1).unwrap().errno,
        EINVAL
    );
    assert_eq!(
        client.call(CMD_BLOCK_STATUS, 0, 0, 4096).unwrap().errno,
        EINVAL,
        "no context was negotiated"
    );
    assert_eq!(client.call(CMD_CACHE, 0, 0, 4096).unwrap().errno, 0);
    assert_eq!(client.read(776, 7).unwrap(), b"\0plain\0");
}

#[test]
fn extended_headers_echo_offsets_and_speak_64_bits() {
    let pair = pair();
    let mut client = Client::attach(&pair.clichy.target(), "demo", Dialect::Extended).unwrap();
    client.write(0, 5 * MIB + 3, b"extended").unwrap();
    let answer = client.call(CMD_READ, 0, 5 * MIB, 16).unwrap();
    assert_eq!(answer.echoed_offset, Some(5 * MIB));
    assert_eq!(
        nbd::assemble(&answer, 5 * MIB, 16, Dialect::Extended).unwrap(),
        b"\0\0\0extended\0\0\0\0\0"
    );

    let whole = client
        .call(CMD_BLOCK_STATUS, 0, 0, pair.setup.size)
        .unwrap();
    let Some(Chunk::Status { context, extents }) = whole.chunks.first() else {
        panic!("{whole:?}")
    };
    assert_eq!(Some(*context), client.allocation);
    // To the byte until it is in the home, whose file system knows blocks.
    let hole = [(5 * MIB, 3), (5 * MIB + 3, 3)];
    assert!(
        hole.contains(&extents[0]),
        "a hole up to what was written: {extents:?}"
    );
    assert!(extents.iter().all(|(len, _)| *len > 0), "{extents:?}");
    let one = client
        .call(CMD_BLOCK_STATUS, FLAG_REQ_ONE, MIB, MIB)
        .unwrap();
    assert_eq!(
        one.chunks,
        [Chunk::Status {
            context: client.allocation.unwrap(),
            extents: vec![(MIB, 3)]
        }]
    );

    // A trim longer than any payload may be, and nothing is left of the data.
    assert_eq!(
        client
            .call(CMD_TRIM, FLAG_FUA, 0, pair.setup.size)
            .unwrap()
            .errno,
        0
    );
    assert_eq!(client.read(5 * MIB, 16).unwrap(), [0; 16]);
    assert_eq!(client.call(CMD_TRIM, 0, 0, u64::MAX).unwrap().errno, EINVAL);
}

#[test]
fn extended_writes_with_and_without_the_payload_flag_keep_the_stream_in_step() {
    let pair = pair();
    let mut client = Client::attach(&pair.clichy.target(), "demo", Dialect::Extended).unwrap();
    // QEMU does not set the flag; libnbd does.
    let cookie = client.send(CMD_WRITE, 0, 0, 4, b"qemu").unwrap();
    assert_eq!(client.expect(cookie).unwrap().errno, 0);
    client.write(0, 4, b"libnbd").unwrap();
    // A payload where none belongs is read, and the request refused.
    let cookie = client
        .send(CMD_TRIM, FLAG_PAYLOAD_LEN, 0, 512, &[9; 512])
        .unwrap();
    assert_eq!(client.expect(cookie).unwrap().errno, EINVAL);
    assert_eq!(client.read(0, 10).unwrap(), b"qemulibnbd");
}

#[test]
fn flags_that_do_not_belong_to_a_command_are_refused_and_change_nothing() {
    let pair = pair();
    let mut client = Client::attach(&pair.clichy.target(), "demo", Dialect::Structured).unwrap();
    client.write(0, 0, &[1; 512]).unwrap();
    for (command, flags) in [
        (CMD_TRIM, FLAG_NO_HOLE),
        (CMD_TRIM, FLAG_DF),
        (CMD_TRIM, FLAG_FAST_ZERO),
        (CMD_WRITE_ZEROES, FLAG_DF),
        (CMD_WRITE_ZEROES, FLAG_REQ_ONE),
        (CMD_WRITE_ZEROES, 1 << 12),
    ] {
        let answer = client.call(command, flags, 0, 512).unwrap();
        assert_eq!(
            answer.errno, EINVAL,
            "command {command} with flags {flags:#x}"
        );
    }
    let cookie = client.send_write(FLAG_DF, 0, &[2; 512]).unwrap();
    assert_eq!(client.expect(cookie).unwrap().errno, EINVAL);
    assert_eq!(client.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn answers_come_for_every_request_in_flight_whatever_their_order() {
    let pair = pair();
    let mut client = Client::attach(&pair.clichy.target(), "demo", Dialect::Structured).unwrap();
    let mut open: Vec<u64> = (0..64u8)
        .map(|n| client.send_write(0, u64::from(n) * 512, &[n; 512]).unwrap())
        .collect();
    while !open.is_empty() {
        let answer = client.answer().unwrap();
        assert_eq!(answer.errno, 0);
        let at = open
            .iter()
            .position(|c| *c == answer.cookie)
            .expect("a request that is still open");
        open.swap_remove(at);
    }
    for n in 0..64u8 {
        assert_eq!(client.read(u64::from(n) * 512, 512).unwrap(), [n; 512]);
    }
}

#[test]
fn options_are_answered_as_the_specification_says() {
    let pair = pair();
    let mut client = Client::greet(&pair.clichy.target()).unwrap();
    let final_of = |replies: Vec<nbd::OptionReply>| replies.last().unwrap().clone();

    let list = client.option(OPT_LIST, &[]).unwrap();
    assert_eq!(list[0].kind, REP_SERVER);
    assert_eq!(list[0].data, name_and("demo", &[]));
    for option in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
        assert_eq!(
            final_of(client.option(option, b"data").unwrap()).kind,
            REP_ERR_INVALID,
            "option {option} with data"
        );
    }
    let query = [&1u32.to_be_bytes()[..], &name_and("base:allocation", &[])].concat();
    let early = client
        .option(OPT_SET_META_CONTEXT, &name_and("demo", &query))
        .unwrap();
    assert_eq!(
        final_of(early).kind,
        REP_ERR_INVALID,
        "contexts before structured replies"
    );

    client.negotiate(Dialect::Structured).unwrap();
    let unknown = client
        .option(OPT_INFO, &name_and("nobody", &[0, 0]))
        .unwrap();
    assert_eq!(final_of(unknown).kind, REP_ERR_UNKNOWN);
    let crooked = client.option(OPT_INFO, &[0, 0, 0, 99, b'x']).unwrap();
    assert_eq!(
        final_of(crooked).kind,
        REP_ERR_INVALID,
        "a name longer than the option"
    );
    let all = client
        .option(OPT_LIST_META_CONTEXT, &name_and("demo", &[0; 4]))
        .unwrap();
    assert_eq!(all[0].kind, REP_META_CONTEXT);
    assert_eq!(all[0].data[4..], *b"base:allocation");
    let set = client
        .option(OPT_SET_META_CONTEXT, &name_and("demo", &query))
        .unwrap();
    assert_eq!(
        (set[0].kind, final_of(set).kind),
        (REP_META_CONTEXT, REP_ACK)
    );

    let info = client.option(OPT_INFO, &name_and("demo", &[0, 0])).unwrap();
    assert_eq!(
        (info[0].kind, final_of(info.clone()).kind),
        (REP_INFO, REP_ACK)
    );
    let go = client.option(OPT_GO, &name_and("demo", &[0, 0])).unwrap();
    assert_eq!(
        go[0], info[0],
        "GO after INFO shows the same size and flags"
    );
}

#[test]
fn export_name_still_works_for_the_oldest_clients() {
    let pair = pair();
    let mut client = Client::greet(&pair.clichy.target()).unwrap();
    client.send_option(nbd::OPT_EXPORT_NAME, b"demo").unwrap();
    let answer = client.take(10).unwrap();
    assert_eq!(answer[..8], pair.setup.size.to_be_bytes());
    client.write(0, 0, b"old").unwrap();
    assert_eq!(client.read(0, 3).unwrap(), b"old");
}

#[test]
fn nbdfuse_shows_the_volume_as_a_file() {
    need(&["nbdfuse"]);
    if !root_or_skip("FUSE without fusermount") {
        return;
    }
    let pair = pair();
    let file = support::mount::NbdFuse::new(pair.scratch(), &pair.clichy.uri());
    support::shell(&format!(
        "f={}; printf hello | dd of=$f bs=1 seek=1000 conv=notrunc,fsync status=none; test \"$(dd if=$f bs=1 skip=1000 \
         count=5 status=none)\" = hello",
        file.path().display()
    ));
}
