"""Advice about indexes and plans, as it is answered."""

from __future__ import annotations

from tenancy.data_isolation.engine.plan_advice import PlanAdvice
from tenancy.data_isolation.engine.schema_advice import SchemaAdvice
from tenancy.data_isolation.serve.models import (
    IndexAdviceAnswer,
    MigrationBody,
    PlanAdviceAnswer,
    SchemaAdviceAnswer,
    ServerStatisticsAnswer,
    ShownStatementAnswer,
    TableBody,
    VariableAnswer,
)


def advice_answer(advice: SchemaAdvice) -> SchemaAdviceAnswer:
    """What was found, without a text of a statement."""
    return SchemaAdviceAnswer(
        servers=[
            ServerStatisticsAnswer(
                server=item.server,
                state=item.state.value,
                hint=item.hint,
                planning_counted=item.planning_counted,
            )
            for item in advice.servers
        ],
        indexes=[
            IndexAdviceAnswer(
                table=item.table,
                columns=list(item.columns),
                statements=item.statements,
                calls=item.calls,
                total_s=item.total_s,
                blocks_per_call=item.blocks_per_call,
                migration=MigrationBody(name=item.migration, sql=item.sql),
            )
            for item in advice.indexes
        ],
        plans=[_plan(item) for item in advice.plans],
    )


def _plan(item: PlanAdvice) -> PlanAdviceAnswer:
    of, at = item.statements, item.table
    return PlanAdviceAnswer(
        kind=item.kind.value,
        statements=of.kinds,
        shown=[
            ShownStatementAnswer(
                fingerprint=one.fingerprint,
                # As text: JSON's numbers are too small in many languages.
                query_ids=[str(number) for number in one.query_ids],
                tables=list(one.tables),
            )
            for one in of.shown
        ],
        calls=of.calls,
        total_s=of.total_s,
        figures=dict(item.figures),
        remedy=item.remedy,
        cost=item.cost,
        undo=item.undo,
        sql=item.sql,
        variable=None
        if item.variable is None
        else VariableAnswer(name=item.variable[0], value=item.variable[1]),
        analyze=None
        if at is None
        else TableBody(server=at.server, database=at.database, schema=at.schema, table=at.table),
    )
