use super::*;

fn render(source: &str, limit_bytes: usize) -> Result<String, Refusal> {
    let messages = Value::from(vec![Value::from_pairs([("role", "user"), ("content", "hi")])]);
    let context = Value::from_pairs([
        ("messages", messages),
        ("yes", Value::from(true)),
        ("nothing", Value::from(())),
    ]);
    Template::compile(source).unwrap().render(context, limit_bytes)
}

/// The expectations are Jinja2 3.1.6's with transformers' environment.
fn check(source: &str, expected: &str) {
    assert_eq!(render(source, 1000).as_deref(), Ok(expected), "{source}");
}

fn check_refusal(source: &str, reason: &str) {
    assert_eq!(render(source, 1000).unwrap_err().reason(), reason, "{source}");
}

#[test]
fn blocks_are_trimmed_and_values_print_as_in_python() {
    check("a\n  {% if yes %}\nb\n  {% endif %}\nc\n", "a\nb\nc");
    check("{{ yes }} {{ nothing }} {{ [1, 'a'] }} {{ 1.0 }}", "True None [1, 'a'] 1.0");
    check("[{{ missing }}]{{ missing is defined }}", "[]False");
    check("{{ '<b>&' }}", "<b>&");
    check("a\r\n{% if yes %}\r\nb\rc{% endif %}", "a\nb\nc");
}

#[test]
fn generation_blocks_render_as_their_body() {
    check("{% generation %}a{% endgeneration %}b", "ab");
    check("x {%- generation -%} a {%- endgeneration -%} b", "xab");
    check("{% set x = 1 %}{%- generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21");
    check(
        "{% for m in messages %}\n  {% generation %}\n{{ m.content }}\n  {% endgeneration %}\n{% endfor %}",
        "hi\n",
    );
}

#[test]
fn endless_and_huge_templates_are_stopped() {
    // Both Jinja's sandbox and minijinja bound one range to 100,000.
    check_refusal("{% for i in range(100000000) %}{% endfor %}", "template_failed");
    check_refusal(
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "template_out_of_fuel",
    );
    check_refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "template_failed");
    let huge = "{% for i in range(10240) %}{{ 'x' * 1024 }}{% endfor %}";
    assert_eq!(render(huge, 1 << 20), Err(Refusal::OutputTooLarge { limit_bytes: 1 << 20 }));
    assert_eq!(render(huge, 10 << 20).map(|text| text.len()), Ok(10 << 20));
}

#[test]
fn errors_have_reasons_of_their_own() {
    check_refusal("{{ strftime_now('%d') }}", "template_reads_clock");
    check_refusal("{{ raise_exception('no ' ~ yes) }}", "template_raised");
    check_refusal(
        "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}",
        "template_raised",
    );
    assert_eq!(
        render("{{ raise_exception('no ' ~ yes) }}", 9),
        Err(Refusal::TemplateRaised { message: "no True".to_owned() })
    );
    check_refusal("{{ missing.attribute }}", "template_failed");
    check_refusal("{{ messages | bogus }}", "template_failed");
    let err = Template::compile("{% if %}").unwrap_err();
    assert_eq!(err.reason(), "template_syntax");
}
