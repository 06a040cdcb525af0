import fc from "fast-check"
import { isLate } from "../../src/iclock/front.ts"
import { describe, expect, it } from "vitest"
import { MAX_HEAD_BYTES, readChunks, readHead, writeAnswer } from "../../src/iclock/http.ts"
import { parseRequest, serialOf } from "../../src/iclock/request.ts"

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

describe("the head of a request", () => {
  it.each([
    ["GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n", { method: "GET", path: "/a", search: "?b=c", length: 0, expectsContinue: false }],
    ["GET /a?b=Ver 6.60 x HTTP/1.0\n\n", { method: "GET", path: "/a", search: "?b=Ver 6.60 x", length: 0 }],
    ["GET /a?b=Ver 6.60\n\n", { method: "GET", path: "/a", search: "?b=Ver 6.60" }],
    [
      "POST http://h:1/a HTTP/1.1\r\ncontent-LENGTH: 12\r\nexpect: 100-Continue\r\n\r\n",
      { path: "/a", search: "", length: 12, expectsContinue: true },
    ],
    ["POST /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", { length: "chunked" }],
    ["POST /a HTTP/1.1\r\n\r\n", { length: null }],
    ["GET /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", { length: 3, bodyAt: 38 }],
  ])("%j", (text, head) => expect(readHead(bytes(text as string))).toMatchObject(head as object))

  it.each([["GET /a HTTP/1.1\r\nHost: x\r\n"], ["GE"], [""]])("%j is not all of it", (text) => expect(readHead(bytes(text))).toBe("more"))

  it.each([["\r\n\r\n"], ["HELLO\r\n\r\n"], ["GET \r\n\r\n"], ["POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n"], ["\x16\x03\x01\x02 /\n\n"]])(
    "%j is none",
    (text) => expect(readHead(bytes(text))).toBe("bad"),
  )

  it("one without end is none", () => expect(readHead(bytes("x".repeat(MAX_HEAD_BYTES + 1)))).toBe("bad"))

  it("any bytes are read without a throw", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (noise) => void readHead(noise)))
    fc.assert(fc.property(fc.string({ unit: "binary" }), (noise) => void readHead(bytes(`GET /${noise} HTTP/1.1\r\n${noise}\r\n\r\n`))))
  })
})

describe("chunks", () => {
  it.each([
    ["3\r\nabc\r\n0\r\n\r\n", "abc"],
    ["3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde"],
    ["0\r\n\r\n", ""],
  ])("%j", (text, whole) => expect(Buffer.from(readChunks(bytes(text)) as Uint8Array).toString()).toBe(whole))

  it.each([["3\r\nab"], ["3\r\nabc"], ["3\r\nabc\r\n"], ["3"]])("%j is not all of it", (text) => expect(readChunks(bytes(text))).toBe("more"))
  it.each([["zz\r\nabc\r\n"], ["3\r\nabcdef\r\n"]])("%j is none", (text) => expect(readChunks(bytes(text))).toBe("bad"))

  it("any bytes are read without a throw", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 100 }), (noise) => void readChunks(noise)))
  })
})

it("an answer, byte for byte", () => {
  expect(Buffer.from(writeAnswer({ status: 200, text: "OK: 2" }, Date.parse("2025-03-03T00:41:16.500Z"))).toString()).toBe(
    "HTTP/1.1 200 OK\r\nDate: Mon, 03 Mar 2025 00:41:16 GMT\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nOK: 2",
  )
})

it.each([
  ["/iclock/cdata", "cdata"],
  ["/iclock/cdata.aspx", "cdata"],
  ["/x/y/ICLOCK/GetRequest.PHP/", "getrequest"],
  ["/", ""],
])("path %s asks for %j", (path, name) => expect(parseRequest("GET", path, "").name).toBe(name))

it("the query is read by lower-case name, the first of each, undecodable text as it stands", () => {
  const { query } = parseRequest("get", "/iclock/cdata", "?SN=A1&sn=B&Info=100%&x=%41+b&flag")
  expect(Object.fromEntries(query)).toEqual({ sn: "A1", info: "100%", x: "A+b", flag: "" })
  expect(serialOf(parseRequest("GET", "/", "?sn=A1"))).toBe("A1")
})

describe("a connection is ended", () => {
  const now = 1_000_000
  it.each([
    ["its head is not here after 15 s, although bytes keep coming", "head", 15_001, 10, 500, true],
    ["its head came in time", "head", 14_000, 10, 500, false],
    ["it says nothing for a minute", "body", 61_000, 60_001, 1_000_000, true],
    ["its body takes minutes over 16 kbit/s, and goes on", "body", 590_000, 100, 1_100_000, false],
    ["its body takes for ever", "body", 600_001, 100, 1_200_000, true],
    ["its body comes byte by byte", "body", 65_000, 100, 1_200, true],
    ["its line was bad for a moment at the beginning", "body", 59_000, 100, 300, false],
    ["it is answered and does not go", "done", 3_000, 2_001, 500, true],
    ["the file is slow to store it", "deciding", 61_000, 61_000, 500, false],
  ] as const)("%s", (_, state, age, silence, bytes, late) =>
    expect(isLate({ state, startedAt: now - age, lastAt: now - silence, bytes }, now)).toBe(late),
  )
})
