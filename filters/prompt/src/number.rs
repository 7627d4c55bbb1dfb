//! Numbers as Python prints them.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Object, ObjectRepr};

/// A float for templates. minijinja prints floats without exponents; one that Python prints with
/// an exponent becomes an [`OddFloat`].
pub(crate) fn float_value(value: f64) -> Value {
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        Value::from(value)
    } else {
        Value::from_object(OddFloat(value))
    }
}

/// A very small or large float. It prints and dumps as in Python; templates that calculate with it
/// fail, and so are refused.
pub(crate) struct OddFloat(pub(crate) f64);

impl Object for OddFloat {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&float_repr(self.0))
    }
}

impl fmt::Debug for OddFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&float_repr(self.0))
    }
}

/// `repr(value)` of a Python float: the shortest digits that read back, positional for exponents
/// -4 to 15, otherwise scientific with a sign and at least two digits.
pub(crate) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        let mut text = format!("{value}");
        if !text.contains('.') {
            text.push_str(".0");
        }
        text
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_print_floats_as_python_does() {
        let check = |value: f64, expected: &str| {
            let context = Value::from_pairs([("x", float_value(value))]);
            let mut env = minijinja::Environment::new();
            env.add_filter("tojson", crate::tojson::tojson);
            let text =
                env.render_str("{{ x }} {{ 'a' ~ x }} {{ [x] }} {{ [x] | tojson }}", context);
            assert_eq!(text.unwrap(), expected);
        };
        check(1e-7, "1e-07 a1e-07 [1e-07] [1e-07]");
        check(-2.5e17, "-2.5e+17 a-2.5e+17 [-2.5e+17] [-2.5e+17]");
        check(0.5, "0.5 a0.5 [0.5] [0.5]");
        check(3.0, "3.0 a3.0 [3.0] [3.0]");
        check(0.0001, "0.0001 a0.0001 [0.0001] [0.0001]");
    }

    #[test]
    fn floats_print_as_in_python() {
        // Right-hand sides: repr() of CPython 3.11.
        let check = |value: f64, expected: &str| assert_eq!(float_repr(value), expected);
        check(0.0, "0.0");
        check(-0.0, "-0.0");
        check(1.0, "1.0");
        check(0.1, "0.1");
        check(1e15, "1000000000000000.0");
        check(1e16, "1e+16");
        check(1.5e300, "1.5e+300");
        check(0.0001, "0.0001");
        check(0.00001, "1e-05");
        check(1.234e-7, "1.234e-07");
        check(123456789.125, "123456789.125");
        check(f64::INFINITY, "inf");
        check(f64::NAN, "nan");
    }
}
