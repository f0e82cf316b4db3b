// The one error that bytes from elsewhere can cause, twin of seedmask/errors.py.  PROTOCOL 10.
//
// Two kinds of wrong. Theirs: a ProtocolError whose `code` is the rule's name in section 10; answer it and go on. Ours:
// a RangeError or TypeError; a bug of the calling program.

/** Bytes that break a rule of PROTOCOL.md: `code` names the rule, `message` is "code: what was found". */
export class ProtocolError extends Error {
  /**
   * @param {string} code a name of PROTOCOL 10, such as "truncated" or "codec"
   * @param {string} text what was found, and what was possible
   */
  constructor(code, text) {
    super(`${code}: ${text}`);
    this.name = "ProtocolError";
    this.code = code;
  }
}

/** Throw a ProtocolError of `code`; an expression, so that it can stand behind `??` and `:`. */
export const fail = (code, text) => { throw new ProtocolError(code, text); };
