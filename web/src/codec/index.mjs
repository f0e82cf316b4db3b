// The mask codecs by their number on the wire, twin of seedmask/codec/__init__.py.  PROTOCOL 5.
//
// A codec is a module: ID, NAME, draw(scores, theta, shared, random, plan), decode(payload, theta, shared, maxBlocks),
// and encode(mask, theta) where it can code any mask. decode returns a mask or throws a ProtocolError.

import { fail } from "../errors.mjs";
import * as hmrc from "./hmrc.mjs";
import * as packed from "./packed.mjs";
import * as rans from "./rans.mjs";

/** Number on the wire to codec, a Map. */
export const CODECS = new Map([packed, rans, hmrc].map((codec) => [codec.ID, codec]));

/** Return the mask codec of a number on the wire. Throws `kind`. */
export function codecById(id) {
  const known = [...CODECS.values()].map((codec) => `${codec.ID} ${codec.NAME}`).join(", ");
  return CODECS.get(id) ?? fail("kind", `codec ${id} is unknown; known: ${known}`);
}
