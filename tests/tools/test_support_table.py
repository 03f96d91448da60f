import support_table


def test_the_table_of_the_documentation_is_what_the_dispatcher_answers() -> None:
    page = support_table.PAGE.read_text()
    assert support_table.BEGIN in page
    assert page == support_table.with_table(page), "run `python tools/support_table.py`"
