//! What the fuzz targets begin from: small texts that reach every corner of a parser, and the words that its grammar is
//! made of.

pub const REQUESTS: &[&[u8]] = &[
    b"GET /stock/7 HTTP/1.1\r\nHost: inventory\r\nAccept: */*\r\n\r\nGET /stock/8 HTTP/1.1\r\nHost: inventory\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nTraceParent:  00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 \r\nContent-Length: 5\r\n\r\nhelloPUT /b HTTP/1.0\r\ncontent-length:0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n5;a=\"b\"\r\nGET /\r\n1A\r\n HTTP/1.1\r\n\r\nGET / HTTP/1\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\nHEAD http://user@a:80/b?c HTTP/1.1\nHost: a\n\nCONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /phantom HTTP/1.1\r\ntraceparent: x\r\n\r\nGET /real HTTP/1.1\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nExpect: 100-continue\r\n\r\n\x81\x05hello",
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\ntraceparent: bad\r\nX: a\r\n folded\r\nContent-Length : 4\r\n\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

pub const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nHTTP/1.1 200HTTP/1.1 304 N\r\nContent-Length: 9\r\n\r\nHTTP/1.1 204 \r\n\r\nHTTP/1.1 404\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 500 E\r\nTransfer-Encoding:chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n",
    b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end, HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05hello",
];

pub const TRACEPARENTS: &[&[u8]] = &[
    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"00-00000000000000000000000000000001-0000000000000001-ff",
    b"00-00000000000000000000000000000000-00f067aa0ba902b7-00",
];

pub const PATHS: &[&[u8]] = &[
    br#"{"fntrace":1,"type":"path","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","start":"2026-11-23T09:00:00.000000Z","duration_us":900,"complete":true,"root":{"kind":"invocation","span_id":"00f067aa0ba902b7","function":"checkout","sandbox":"/a","pid":1,"start_us":0,"duration_us":900,"cold":true,"http":{"method":"GET","path":"/","status":200},"children":[{"kind":"call","span_id":"b7ad6b7169203332","to":"stock","peer":"127.0.0.1:80","start_us":100,"duration_us":100,"tag":"injected","parent_by":"exclusive","children":[{"kind":"invocation","span_id":"b7ad6b7169203333","function":"stock","sandbox":"/b","pid":2,"start_us":120,"duration_us":70,"cold":false,"joined_by":"tag"}]}]}}"#,
    b"{\"fntrace\":7,\"type\":\"stats\",\"novel\":[1,2]}\n\n{\"fntrace\":1,\"type\":\"stats\"}",
];

pub const CALL_TREES: &[&[u8]] = &[
    br#"{"spans":[{"id":"a","parent":null,"service":"front","op":"GET /","kind":"server","start_us":0,"duration_us":900},{"id":"b","parent":"a","service":"front","op":"GET /stock","kind":"client","start_us":10,"duration_us":50},{"id":"c","parent":"b","service":"stock","op":"GET /stock","kind":"server","start_us":12}]}"#,
    br#"{"spans":[{"id":"b","parent":"a","service":"back","kind":"server","start_us":5},{"id":"a","service":"front","kind":"server","start_us":9}]}"#,
    br#"{"spans":[{"id":"a","parent":"a","service":"","start_us":-9223372036854775808,"duration_us":18446744073709551615}]}"#,
];

pub const FAAS_CHAINS: &[&[u8]] = &[
    br#"{"calls":[{"t":1600000000000.5,"fn":"one","wait":3,"init":200},{"t":1600000000310,"fn":"two","wait":2.25,"init":0},{"t":1600000000290,"fn":"three"}]}"#,
    br#"{"calls":[{"t":1e308,"fn":"one","wait":-1e308,"init":1e308}]}"#,
];

/// What a mutation puts in whole, since single bytes would seldom come to it.
pub const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"         ",
    b":",
    b",",
    b"\"",
    b"{",
    b"]",
    b"0",
    b"7",
    b"18446744073709551616",
    b"ffffffffffffff",
    b"chunked",
    b"xchunked",
    b", chunked",
    b"identity",
    b"Content-Length: ",
    b"tracepar",
    b"-Encoding: ",
    b"Content-Length: 1\r\n",
    b"content-length:",
    b"Transfer-Encoding: ",
    b"transfer-encoding: chunked\r\n",
    b"traceparent: ",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
    b"X-Filler: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"HEAD ",
    b"CONNECT ",
    b"HTTP/1.1",
    b"HTTP/1.1 204 \r\n\r\n",
    b" HTTP/1.0\r\n",
    b"0\r\n\r\n",
    b"1;x=y\r\na\r\n",
    b"\xff",
    b"\xe2\x80\xae",
    b"\x1b[2J",
    b"\0",
];
