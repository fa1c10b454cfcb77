/** A rank whose result cannot go to another thread. */
export default () => () => "a function";
