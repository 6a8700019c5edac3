//! Every structure, byte by byte.

use zerocopy::IntoBytes;

use crate::nbd::wire::*;

#[test]
fn the_greeting_is_nbdmagic_ihaveopt_and_the_handshake_flags() {
    let greeting = Greeting {
        magic: GREETING_MAGIC.into(),
        option_magic: OPTION_MAGIC.into(),
        flags: 3.into(),
    };
    assert_eq!(greeting.as_bytes(), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn an_option_is_ihaveopt_its_number_and_the_length_of_its_data() {
    let header = OptionHeader {
        magic: OPTION_MAGIC.into(),
        option: option::GO.into(),
        len: 0x0102_0304.into(),
    };
    assert_eq!(
        header.as_bytes(),
        b"IHAVEOPT\x00\x00\x00\x07\x01\x02\x03\x04"
    );
}

#[test]
fn an_answer_is_its_magic_the_option_the_kind_and_the_length_of_its_data() {
    let header = AnswerHeader {
        magic: ANSWER_MAGIC.into(),
        option: option::SET_META_CONTEXT.into(),
        kind: answer::ERR_UNKNOWN.into(),
        len: 5.into(),
    };
    assert_eq!(
        header.as_bytes(),
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0a\x80\x00\x00\x06\x00\x00\x00\x05"
    );
}

#[test]
fn the_answer_to_export_name_is_size_and_flags() {
    let body = ExportNameAnswer {
        size: 0x0102_0304_0506_0708.into(),
        flags: 0x090a.into(),
    };
    assert_eq!(body.as_bytes(), b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a");
}

#[test]
fn the_fact_export_is_its_kind_size_and_flags() {
    let fact = InfoExport {
        kind: info::EXPORT.into(),
        size: 0x0102_0304_0506_0708.into(),
        flags: 0x090a.into(),
    };
    assert_eq!(
        fact.as_bytes(),
        b"\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a"
    );
}

#[test]
fn the_fact_block_size_is_its_kind_minimum_preferred_and_maximum() {
    let fact = InfoBlockSize {
        kind: info::BLOCK_SIZE.into(),
        minimum: 1.into(),
        preferred: 4096.into(),
        maximum: (32 << 20).into(),
    };
    assert_eq!(
        fact.as_bytes(),
        b"\x00\x03\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00"
    );
}

#[test]
fn a_compact_request_is_28_bytes_with_a_32_bit_length() {
    let header = CompactRequest {
        magic: COMPACT_REQUEST_MAGIC.into(),
        flags: command_flag::FUA.into(),
        command: command::WRITE.into(),
        cookie: 0x1112_1314_1516_1718.into(),
        offset: 0x2122_2324_2526_2728.into(),
        len: 0x3132_3334.into(),
    };
    assert_eq!(
        header.as_bytes(),
        b"\x25\x60\x95\x13\x00\x01\x00\x01\x11\x12\x13\x14\x15\x16\x17\x18\
          \x21\x22\x23\x24\x25\x26\x27\x28\x31\x32\x33\x34"
    );
}

#[test]
fn an_extended_request_is_32_bytes_with_a_64_bit_length() {
    let header = ExtendedRequest {
        magic: EXTENDED_REQUEST_MAGIC.into(),
        flags: command_flag::PAYLOAD_LEN.into(),
        command: command::BLOCK_STATUS.into(),
        cookie: 0x1112_1314_1516_1718.into(),
        offset: 0x2122_2324_2526_2728.into(),
        len: 0x3132_3334_3536_3738.into(),
    };
    assert_eq!(
        header.as_bytes(),
        b"\x21\xe4\x1c\x71\x00\x20\x00\x07\x11\x12\x13\x14\x15\x16\x17\x18\
          \x21\x22\x23\x24\x25\x26\x27\x28\x31\x32\x33\x34\x35\x36\x37\x38"
    );
}

#[test]
fn a_simple_reply_is_error_and_cookie() {
    let header = SimpleReply {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: 28.into(),
        cookie: 0x1112_1314_1516_1718.into(),
    };
    assert_eq!(
        header.as_bytes(),
        b"\x67\x44\x66\x98\x00\x00\x00\x1c\x11\x12\x13\x14\x15\x16\x17\x18"
    );
}

#[test]
fn a_structured_chunk_is_20_bytes_with_a_32_bit_length() {
    let header = StructuredChunk {
        magic: STRUCTURED_REPLY_MAGIC.into(),
        flags: REPLY_DONE.into(),
        kind: chunk::ERROR.into(),
        cookie: 0x1112_1314_1516_1718.into(),
        len: 0x3132_3334.into(),
    };
    assert_eq!(
        header.as_bytes(),
        b"\x66\x8e\x33\xef\x00\x01\x80\x01\x11\x12\x13\x14\x15\x16\x17\x18\x31\x32\x33\x34"
    );
}

#[test]
fn an_extended_chunk_is_32_bytes_with_the_offset_of_the_request() {
    let header = ExtendedChunk {
        magic: EXTENDED_REPLY_MAGIC.into(),
        flags: 0.into(),
        kind: chunk::OFFSET_HOLE.into(),
        cookie: 0x1112_1314_1516_1718.into(),
        offset: 0x2122_2324_2526_2728.into(),
        len: 0x3132_3334_3536_3738.into(),
    };
    assert_eq!(
        header.as_bytes(),
        b"\x6e\x8a\x27\x8c\x00\x00\x00\x02\x11\x12\x13\x14\x15\x16\x17\x18\
          \x21\x22\x23\x24\x25\x26\x27\x28\x31\x32\x33\x34\x35\x36\x37\x38"
    );
}

#[test]
fn payloads_of_chunks_are_packed_and_big_endian() {
    let data = OffsetData {
        offset: 0x0102_0304_0506_0708.into(),
    };
    assert_eq!(data.as_bytes(), b"\x01\x02\x03\x04\x05\x06\x07\x08");
    let hole = OffsetHole {
        offset: 0x0102_0304_0506_0708.into(),
        len: 0x090a_0b0c.into(),
    };
    assert_eq!(
        hole.as_bytes(),
        b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"
    );
    let error = ErrorHead {
        error: 22.into(),
        text_len: 0x0102.into(),
    };
    assert_eq!(error.as_bytes(), b"\x00\x00\x00\x16\x01\x02");
}

#[test]
fn extents_have_32_bit_fields_in_one_form_and_64_bit_fields_in_the_other() {
    let head = Status { context: 1.into() };
    assert_eq!(head.as_bytes(), b"\x00\x00\x00\x01");
    let extent = StatusExtent {
        len: 0x0102_0304.into(),
        state: (state::HOLE | state::ZERO).into(),
    };
    assert_eq!(extent.as_bytes(), b"\x01\x02\x03\x04\x00\x00\x00\x03");

    let head = StatusExt {
        context: 1.into(),
        count: 2.into(),
    };
    assert_eq!(head.as_bytes(), b"\x00\x00\x00\x01\x00\x00\x00\x02");
    let extent = StatusExtExtent {
        len: 0x0102_0304_0506_0708.into(),
        state: u64::from(state::ZERO).into(),
    };
    assert_eq!(
        extent.as_bytes(),
        b"\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00\x00\x00\x02"
    );
}

#[test]
fn the_filter_of_block_status_is_a_length_and_a_context() {
    let filter = StatusFilter {
        len: 0x0102_0304_0506_0708.into(),
        context: ALLOCATION_ID.into(),
    };
    assert_eq!(
        filter.as_bytes(),
        b"\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x01"
    );
}

#[test]
fn a_text_is_cut_to_4096_bytes_between_characters_and_has_no_nul() {
    assert_eq!(string("as it is"), "as it is");
    assert_eq!(string("a\0b"), "a b");
    let long = format!("x{}", "é".repeat(3000));
    let cut = string(&long);
    assert_eq!(cut.len(), 4095);
    assert!(long.starts_with(&*cut));
}
